"""The gateway's organs in the order of an image, behind the door `client.py`.

`journal` (what is acknowledged, on disk: `journal_file`, `journal_rows`; read beside its owner by `journal_reader`),
`collector` (which images make a series, and when it is reported; `open_series`, `idle`, `reporting`, `closed_series`),
`questions` to `pacs` and its answers, `dispatcher` (reports out, large ones in `pieces`) by way of `server_client`.
Beside that way: `heartbeat` and the `orders` that it brings, `spans`, `recorder`, `metrics_port`, `clock`, and
`operations`, which the command line in `cli` asks for.
"""
