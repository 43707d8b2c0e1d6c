"""All SQL of the server, behind the door `db.py`; on SQLite and PostgreSQL alike.

`engine` (how a database is opened, and when a transaction is tried again), `schema` (the tables), `merge` (what a
report changes), `latest`, `search` with `matching` (DICOM's ways of matching), `keys` with `key_reader`, `move`;
`migrations/`.
"""
