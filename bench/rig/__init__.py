"""What programs that measure, and tests, set up: our processes, real peers, databases, senders and proxies.

`processes`, `peers`, `postgres`, `senders`, `receivers`, `proxy`, `otlp`, `progress`.
"""
