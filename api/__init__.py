"""What the server answers and tells, behind the door `server.py`.

`lifespan` (what a process has open, and what runs in it), `access` (who may ask for what), `patience` (how long a body
is waited for), `listeners` (vanished clients); `answers`, `problems` and `examples` (what routes answer with);
`listing` (GET /series), `follower` (wakes who waits for changes), `stream`, `webhooks`, `overview` and `webpage` (the
live page), `operations` (what the command line asks for). QIDO-RS stands in `dicomweb`, the command line in `cli`.
"""
