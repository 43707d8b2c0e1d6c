"""`python server.py …`.

`commands` (the command line), `check`, `init`, `move`, `purge`, and `first_key`: what the first key does to a gateway
without one. On any machine: `readers` (these commands), `remote` (a server read over HTTP), `on_complete`, its file of
jobs (`backlog`), what follows and runs (`runner`) and what it shows (`terminal`); `export`, `sources`.
"""
