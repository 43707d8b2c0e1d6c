"""All SQL of the server, behind the door `db.py`; on SQLite and PostgreSQL alike.

`engine` (how a database is opened, and when a transaction is tried again), `schema` (the tables), `merge` (what a
report changes) with `folding` (names) and `history` (timelines); `listing` (for GET /series), `latest` and `stored`
(for the live page), `search` with `matching` (for QIDO-RS), `sources` with `rhythm` (who sends), `webhooks`, `orders`
and `heartbeats` (of gateways), `keys` with `key_reader`; `inspection` (for `check`), `urls`, `move`, `purge`;
`migrations/`.
"""
