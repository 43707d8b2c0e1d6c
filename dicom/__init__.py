"""The DICOM protocol without the gateway, behind the door `scp.py`.

`upper_layer` (PS3.8 and PS3.7 as a state machine without sockets), `associate` (an association request read, and its
answer), `command_set` (a DIMSE command read, and its answer), `sop_classes` (what is stored), `walk` (a data set as it
streams), `deflate` (one that is inflated), `header` (what of it is wanted: an Instance, never the pixels), `text` (in
whatever character set), `statuses`, `tls` and `listening`, `connection` (bytes in and out, and time-outs): what the
door is made of. `scu` (our own associations to a PACS, and the answers on them) and `query_retrieve` (what a PACS has:
C-FIND, C-GET, C-MOVE) call the other way.
"""
