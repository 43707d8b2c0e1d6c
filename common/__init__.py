"""The modules that gateway and server share.

Setting up: `start`, `settings` (with `kinds` of values, and long ones in `extras` and `required`), `errors`.
Telling: `logs`, `events` (every event that is logged), `metrics`, `tracing`.
Files and sockets: `control` (asking the process that owns a file), `at_rest` (reading a SQLite file beside its owner),
`connections` and `outgoing` (TCP and HTTP).
Small things: `attributes`, `study_kinds`, `threads`, `times`, `version`.
"""
