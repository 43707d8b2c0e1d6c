"""All SQL of the server, behind the door `db.py`; on SQLite and PostgreSQL alike.

`engine` (how a database is opened, and when a transaction is tried again), `schema` (the tables), `merge` (what a
report changes) with `rows`, `folding` (names) and `history` (timelines), `revisions` (what of that is written and
told), `declarations` (a person's word), `answers`; `listing` (for GET /series and /studies), `latest` and `stored`
(for the live page), `study_views` (what is shown of studies), `search` with `matching` (for QIDO-RS), `sources` with
`rhythm` (who sends), `webhooks`, `orders` and `heartbeats` (of gateways), `keys` with `key_reader`; `inspection`,
`urls`, `move`, `purge`; `migrations/`.
"""
