"""What the server answers and tells, behind the door `server.py`.

`lifespan` (what a process has open and runs), `access` with `acting` (who may ask for what), `patience` (how long a
body is waited for), `tolerance` (what clients say in several ways), `listeners` (vanished clients); `answers`,
`problems` and `examples` (what routes answer); `listing` and `table` (GET /series), `sources`, `conflicts`, `follower`
(wakes who waits for changes), `stream`, `webhooks` with `untold`, `overview`, `stored`, `refusals` and `webpage` (live
page, orders), `declarations`, `operations` (for the command line). QIDO-RS stands in `dicomweb`, the commands in `cli`.
"""
