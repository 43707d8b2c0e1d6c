"""The DICOM protocol without the gateway, behind the door `scp.py`.

`upper_layer` (PS3.8 and PS3.7 as a state machine without sockets), `header` (encoded data set in, Instance out; never
the pixels), and `scu`: our own associations to a PACS.
"""
