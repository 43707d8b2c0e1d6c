"""`python client.py …`.

`commands` (the command line), `process` (the gateway as a process: signals, workers, the event loop) with `workers`,
`terminal` (its table) and `lines` (its log beside that), `check` with `reach`, `sources`, and `init`.
"""
