"""`python server.py …`.

`commands` (the command line), `check`, `init`, `move`, and `first_key`: what the first key does to a gateway without
one.
"""
