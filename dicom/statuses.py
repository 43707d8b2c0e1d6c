"""Statuses that the gateway answers with or understands (PS3.7, PS3.4), and reasons of A-ASSOCIATE-RJ (PS3.8)."""

# C-STORE statuses, PS3.4 Annex B.2.3
SUCCESS = 0x0000
OUT_OF_RESOURCES = 0xA700
DATA_SET_MISMATCH = 0xA900
CANNOT_UNDERSTAND = 0xC000
PROCESSING_FAILURE = 0x0110  # PS3.7 §C.5.14
STORE_STATUSES = {
    SUCCESS: "Kept: the image is committed to the journal and will be in a report.",
    OUT_OF_RESOURCES: "Not kept: the journal or the disk is full or failing (`python client.py status` says which), or "
    "`GATEWAY_INBOX_TIMEOUT_S` passed before it was kept. The sender should send it again later.",
    DATA_SET_MISMATCH: "Command and data set name different SOP Instance UIDs.",
    CANNOT_UNDERSTAND: "Study, Series or SOP Instance UID is missing, empty, multiple or not a UID, which the Error "
    "Comment says; or the header cannot be read.",
    PROCESSING_FAILURE: "An internal error of the gateway; see its log.",
}
"""The meaning of each status for the sender, as listed in docs/gateway.md."""

# Statuses of any operation, PS3.7 Annex C
SOP_CLASS_NOT_SUPPORTED = 0x0122
UNRECOGNIZED_OPERATION = 0x0211

# Statuses that a PACS answers to C-FIND, C-MOVE and C-GET
PENDING = (0xFF00, 0xFF01)  # PS3.4 §C.4.1.1.4, §C.4.2.1.5
SUB_OPERATIONS_FAILED = 0xB000  # some of them: PS3.4 §C.4.2.1.5

# A-ASSOCIATE-RJ result, source and reason, PS3.8 table 9-21
CALLING_AE_TITLE_NOT_RECOGNIZED = (1, 1, 3)
CALLED_AE_TITLE_NOT_RECOGNIZED = (1, 1, 7)
LOCAL_LIMIT_EXCEEDED = (2, 3, 2)
