"""The gateway's organs in the order of an image, behind the door `client.py`.

`journal` (what is acknowledged, on disk; its rows in `journal_rows`, read beside its owner by `journal_reader`),
`collector` (which images make a series, and when it is reported) with `idle` (how long it may be quiet), `questions` to
`pacs` and its answers, `dispatcher` (reports out) by way of `server_client`, `heartbeat`, `recorder`. The command line
stands in `cli`.
"""
