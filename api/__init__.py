"""What the server answers and tells, behind the door `server.py`.

`lifespan` (what a process has open, and what runs in it), `access` (who may ask for what), `patience` (how long a body
is waited for), `tolerance` (what clients say in several ways), `listeners` (vanished clients); `answers`, `problems`
and `examples` (what routes answer with); `listing` and `table` (GET /series), `sources` (who sends), `follower` (wakes
who waits for changes), `stream`, `webhooks`, `overview`, `stored` and `webpage` (the live page, and orders),
`declarations` (a person's word on a series), `operations` (for the command line); `dicomweb` (QIDO-RS), `cli`.
"""
