"""What both processes share, whichever side of HTTP they stand on.

`start`, `settings` (their kinds in `kinds`, one of them in `extras`), `errors`, `logs`, `metrics`, `events` (each one
that is logged), `tracing`; then `control` (the socket on which the only writer of a file is asked), `at_rest` (a SQLite
file read beside that writer), `threads`, `times`, `outgoing`, `connections`, `version`.
"""
