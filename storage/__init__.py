"""All SQL of the server, behind the door `db.py`; on SQLite and PostgreSQL alike.

`engine` (opening, and trying again) with `connection`, `schema` (the tables), `merge` (what a report changes) with
`rows`, `folding`, `ahead`, `leaps` and `history`, `revisions` (what is written and told), `declarations`, `answers`; of
studies `studies` with `study_rules`, `study_silence`, `study_learning`, `study_holders`, `study_declarations`, `gaps`,
`study_listing` and `study_views`; `listing` (GET /series), `latest` and `stored` (live page), `search` with
`matching` (QIDO-RS), `sources` with `rhythm`, `webhooks`, `orders`, `heartbeats`, `keys` with `key_reader`;
`inspection`, `urls`, `move`, `purge`; `migrations/`.
"""
