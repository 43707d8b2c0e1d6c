"""The parts of the gateway, in the order in which an image passes them. `client.py` connects them.

- `journal` keeps what is acknowledged on disk (`journal_file`, `journal_rows`); `journal_reader` is for commands.
- `collector` decides when a series is reported (`open_series`, `idle`, `tag_counts`, `reporting`, `closed_series`).
- `pacs` answers the collector's `questions`, `study_counts` says when also about a study; `dispatcher` posts reports,
  large ones in `pieces`, by `server_client`; `held_studies` knows what is on this way.
- Beside it: `heartbeat` and the `orders` in its answers, `spans`, `recorder`, `metrics_port`, `clock`, and the
  `operations` that commands in `cli` ask for.
"""
