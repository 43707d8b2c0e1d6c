"""`python client.py …`.

`commands` (the command line), `process` (the gateway as a process: signals, workers, the event loop) with `workers` and
`terminal`, `check` with `reach`, `sources`, and `init`.
"""
