"""What the server answers and tells, behind the door `server.py`.

Routes: `series`, `listing` with `table` (GET /series), `sources`, `conflicts`, `changes` with `stream`, `untold`,
`gateways`, `studies`, `stored` and `overview` (the live page's), `webpage`, `health`; QIDO-RS in `dicomweb`; what they
share in `routing`, `parameters`, `answers`, `problems` and `examples`. Around them: `lifespan` (what a process has
open), `access` with `acting` (who may ask for what), `patience` (for bodies), `tolerance`, `listeners` (vanished
clients), `follower` (wakes who waits for changes), `webhooks` with `told`, `deciding` (of studies), `refusals`. For
routes and command line alike: `declarations`, `operations`; the commands in `cli`.
"""
