"""What programs that measure, and tests, set up: our processes, real peers, databases, senders and proxies.

`processes`, `network` (hosts that can be cut off), `haproxy` and `cluster` (what stands behind it), `peers`,
`postgres`, `senders`, `receivers`, `load` (senders that are measured with), `built` (what is compiled first: sender.c,
floor.c, dicom-rs), `proxy`, `link` (a long one), `http_server`, `otlp`,
`progress`.
"""
