"""What the server answers and tells, behind the door `server.py`.

`access` (who may ask for what), `patience` (how long a body is waited for), `listeners` (vanished clients),
`follower` (wakes who waits for changes), `webhooks`, `overview` and `webpage` (the live page), `operations` (what the
command line asks for); QIDO-RS stands in `dicomweb`, the command line in `cli`.
"""
