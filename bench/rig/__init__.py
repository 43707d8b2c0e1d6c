"""What programs that measure, and tests, set up: our processes, real peers, databases, senders and proxies.

`processes`, `network` (hosts that can be cut off), `haproxy` and `cluster` (what stands behind it), `peers`,
`postgres`, `senders`, `receivers`, `proxy`, `http_server`, `otlp`, `progress`.
"""
