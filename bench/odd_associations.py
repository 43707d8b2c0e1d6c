"""Odd association requests, as devices send them or mutation makes them; every byte is ours (PS3.8 §9.3.2)."""

import random
import struct
from collections.abc import Iterator
from typing import NamedTuple

CT, MR, VERIFICATION = b"1.2.840.10008.5.1.4.1.1.2", b"1.2.840.10008.5.1.4.1.1.4", b"1.2.840.10008.1.1"
IMPLICIT, EXPLICIT = b"1.2.840.10008.1.2", b"1.2.840.10008.1.2.1"
PRIVATE = b"1.2.826.0.1.3680043.10.99.1"
ELSEWHERE = "127.0.0.2"  # where only KNOWN may send from
ALLOWED = f"127.0.0.1, KNOWN@{ELSEWHERE}, 127.0.0.3=ARCHIVE"
MUTATIONS = 100

LENGTHS = "lengths do not fit: the rest could be anything"
NO_STORAGE = "no storage of images or documents: nothing here serves it"
NO_PATIENT = "storage of no patient (PS3.4 Annex GG): it has no study and no series"
NO_SYNTAX = "without a transfer syntax nothing can be sent on it"
NO_CONTEXT = "without an abstract syntax nobody knows what would come"
NOT_ALLOWED = "GATEWAY_ALLOWED_PEERS does not name it"


class Odd(NamedTuple):
    """A request, and why ours does not accept it, or a context of it; empty: it accepts all."""

    name: str
    request: bytes
    refused: str = ""
    source: str = "127.0.0.1"


# --- bytes ------------------------------------------------------------------------------------------------------


def item(kind: int, content: bytes) -> bytes:
    return struct.pack(">BxH", kind, len(content)) + content


def context(number: int, abstract: bytes | None = CT, *syntaxes: bytes, reserved: bytes = bytes(3)) -> bytes:
    """A presentation context; with Explicit VR Little Endian where no transfer syntax is given."""
    named = item(0x30, abstract) if abstract is not None else b""
    return item(0x20, bytes([number]) + reserved + named + b"".join(item(0x40, uid) for uid in syntaxes or (EXPLICIT,)))


APPLICATION = item(0x10, b"1.2.840.10008.3.1.1.1")
LENGTH, IMPLEMENTATION = item(0x51, struct.pack(">L", 16384)), item(0x52, b"1.2.826.0.1.3680043.10.99")
GOOD = context(1)


def user(*items: bytes, first: bytes = LENGTH + IMPLEMENTATION) -> bytes:
    """The user information."""
    return item(0x50, first + b"".join(items))


def request(
    *items: bytes,
    called: bytes = b"STORESCP",
    calling: bytes = b"CT1",
    version: int = 1,
    reserved: bytes = bytes(2),
    more_reserved: bytes = bytes(32),
) -> bytes:
    """An A-ASSOCIATE-RQ of these items; by default one context of CT."""
    body = struct.pack(">H", version) + reserved + called.ljust(16) + calling.ljust(16) + more_reserved
    body += b"".join(items or (APPLICATION, GOOD, user()))
    return struct.pack(">BxL", 1, len(body)) + body


def of_contexts(*contexts: bytes) -> bytes:
    return request(APPLICATION, *contexts, user())


def of_user(*items: bytes, first: bytes = LENGTH + IMPLEMENTATION) -> bytes:
    return request(APPLICATION, GOOD, user(*items, first=first))


# --- forms ------------------------------------------------------------------------------------------------------


def odd_associations() -> list[Odd]:
    """All of them; mutations are the same each time."""
    return [
        *titles(),
        *(Odd(name, said, why) for name, said, why in fixed_fields()),
        *(Odd(name, of_contexts(*contexts), why) for name, contexts, why in contexts_of()),
        *(Odd(name, said) for name, said in user_information()),
        *(Odd(name, of_contexts(GOOD, context(3, uid, IMPLICIT)), why) for name, uid, why in services()),
        *mutations(),
    ]


def titles() -> Iterator[Odd]:
    forms = {
        "padded with NUL": b"CT1" + bytes(13),
        "with rubbish behind a NUL": b"CT1\0garbage",
        "in Latin-1": b"R\xf6ntgen",
        "in UTF-8": "Röntgen".encode(),
        "of spaces": b"",
        "of NUL": bytes(16),
        "with a control character": b"CT\x1b[31m1",
        "with a backslash": b"CT\\1",
        "in lower case": b"ct1",
        "behind spaces": b"  CT1",
    }
    for form, title in forms.items():
        yield Odd(f"calling AE title {form}", request(calling=title))
        yield Odd(f"called AE title {form}", request(called=title))
    yield Odd("called AE title of somebody else", request(called=b"SOMEONE"))
    yield Odd("calling AE title that is not allowed", request(calling=b"STRANGER"), NOT_ALLOWED, ELSEWHERE)
    yield Odd("calling AE title that is allowed in upper case", request(calling=b"known"), NOT_ALLOWED, ELSEWHERE)
    yield Odd("called AE title that is not allowed", request(), NOT_ALLOWED, "127.0.0.3")


def fixed_fields() -> Iterator[tuple[str, bytes, str]]:
    yield "protocol version 0", request(version=0), "PS3.8 §9.3.2: bit 0 says the only version there is"
    yield "protocol version of all bits", request(version=0xFFFF), ""
    yield "reserved bytes that are not 0", request(reserved=b"\x12\x34", more_reserved=b"\xff" * 32), ""
    yield "no application context", request(GOOD, user()), ""
    yield "application context of somebody else", request(item(0x10, PRIVATE), GOOD, user()), ""
    yield "application context padded with NUL", request(item(0x10, APPLICATION[4:] + b"\0"), GOOD, user()), ""
    yield "application context twice", request(APPLICATION, APPLICATION, GOOD, user()), ""
    yield "application context last", request(GOOD, user(), APPLICATION), ""
    yield "no user information", request(APPLICATION, GOOD), ""
    yield "user information first", request(user(), GOOD, APPLICATION), ""
    yield "user information twice", request(APPLICATION, GOOD, user(), user()), ""
    yield "variable item 2F", request(APPLICATION, item(0x2F, b"\1\2"), GOOD, user()), ""
    yield "variable item 00, empty", request(APPLICATION, GOOD, user(), item(0, b"")), ""
    yield "a byte behind the last item", request(APPLICATION, GOOD, user(), b"\0"), LENGTHS
    yield "user information longer than the PDU", request(APPLICATION, GOOD, user()[:-3]), LENGTHS
    yield "no items", request(b""), ""
    yield "74 bytes are the least, 70 come", struct.pack(">BxL", 1, 64) + request()[6:70], LENGTHS


def contexts_of() -> Iterator[tuple[str, tuple[bytes, ...], str]]:
    yield "context IDs 1 and 2", (GOOD, context(2, MR)), ""
    yield "context IDs 1 and 0", (GOOD, context(0, MR)), ""
    yield "context ID 2 alone", (context(2),), ""
    yield "context ID 255", (context(255),), ""
    yield "context IDs 5, 3, 1", (context(5), context(3, MR), GOOD), ""
    yield "context ID 1 twice", (GOOD, context(1, MR)), ""
    yield "128 contexts", tuple(context(2 * n + 1) for n in range(128)), ""
    yield "200 contexts", tuple(context(n) for n in range(200)), ""
    yield "no contexts", (b"",), ""
    yield "context with reserved bytes that are not 0", (context(1, reserved=b"\1\xff\2"),), ""
    yield "context without abstract syntax", (GOOD, context(3, None)), NO_CONTEXT
    yield "context with an empty abstract syntax", (GOOD, context(3, b"")), NO_CONTEXT
    yield "context with two abstract syntaxes", (item(0x20, context(1)[4:] + item(0x30, MR)),), ""
    yield "context without transfer syntax", (GOOD, item(0x20, b"\3\0\0\0" + item(0x30, MR))), NO_SYNTAX
    yield "context with an empty transfer syntax", (GOOD, context(3, MR, b"")), NO_SYNTAX
    yield "context with a good and an empty transfer syntax", (context(1, CT, EXPLICIT, b""),), ""
    yield "context with an empty and a good transfer syntax", (context(1, CT, b"", EXPLICIT),), ""
    yield (
        "transfer syntax before the abstract syntax",
        (item(0x20, b"\1\0\0\0" + context(1)[-23:] + context(1)[8:-23]),),
        "",
    )
    yield "sub-item 4F in a context", (item(0x20, GOOD[4:] + item(0x4F, b"xx")),), ""
    yield "abstract syntax padded with NUL", (context(1, CT + b"\0"),), ""
    yield "abstract syntax padded with a space", (context(1, CT + b" "),), ""
    yield "transfer syntax padded with NUL", (context(1, CT, EXPLICIT + b"\0"),), ""
    yield "transfer syntax padded with a space", (context(1, CT, EXPLICIT + b" "),), ""
    yield "abstract syntax that is no UID", (GOOD, context(3, b"CT.Image")), ""
    yield "abstract syntax of 80 characters", (GOOD, context(3, PRIVATE + b".1" * 27)), ""
    yield "private transfer syntax", (context(1, CT, PRIVATE),), ""
    yield "private and known transfer syntax", (context(1, CT, PRIVATE, EXPLICIT),), ""
    yield "context of 3 bytes", (GOOD, item(0x20, b"\3\0\0")), LENGTHS
    yield "transfer syntax longer than its context", (context(1)[:-2] + b"\0\0" + context(3)[:10],), LENGTHS


def user_information() -> Iterator[tuple[str, bytes]]:
    yield "user information that is empty", of_user(first=b"")
    yield "no maximum length", of_user(first=IMPLEMENTATION)
    yield "maximum length of 2 bytes", of_user(first=item(0x51, b"\x40\0") + IMPLEMENTATION)
    yield "maximum length of 6 bytes", of_user(first=item(0x51, bytes(2) + b"\x40\0\0\0") + IMPLEMENTATION)
    yield "maximum length 0", of_user(first=item(0x51, bytes(4)) + IMPLEMENTATION)
    yield "maximum length 1", of_user(first=item(0x51, b"\0\0\0\1") + IMPLEMENTATION)
    yield "no implementation class UID", of_user(first=LENGTH)
    yield "implementation class UID that is none", of_user(first=LENGTH + item(0x52, b"VENDOR"))
    yield "implementation class UID of 80 characters", of_user(first=LENGTH + item(0x52, b"1.2" + b".3" * 38))
    versions = {
        "empty": b"",
        "of 17 characters": b"A" * 17,
        "of 64 characters": b"A" * 64,
        "with a NUL": b"V1\0",
        "in Latin-1": b"V\xf6",
        "with a backslash": b"V\\1",
    }
    for form, version in versions.items():
        yield f"implementation version name {form}", of_user(item(0x55, version))
    yield "user item 5A", of_user(item(0x5A, b"\1\2\3\4"))
    yield "user item FF, empty", of_user(item(0xFF, b""))
    yield "user identity type 6", of_user(item(0x58, b"\6\0\0\2ab\0\0"))
    yield "user identity with an empty primary field", of_user(item(0x58, b"\1\0\0\0\0\0"))
    yield "user identity that is cut", of_user(item(0x58, b"\1\0\0\x20ab"))
    yield "asynchronous window of 2 bytes", of_user(item(0x53, b"\0\1"))
    yield "role selection 0/0", of_user(item(0x54, b"\0\x19" + CT + b"\0\0"))
    yield "role selection 0/1", of_user(item(0x54, b"\0\x19" + CT + b"\0\1"))
    yield "role selection 255/2", of_user(item(0x54, b"\0\x19" + CT + b"\xff\2"))
    yield "role selection of no class", of_user(item(0x54, b"\0\0\1\1"))
    yield "role selection of 300 bytes", of_user(item(0x54, struct.pack(">H", 300) + b"1" * 300 + b"\0\1"))
    yield "role selection longer than its item", of_user(item(0x54, b"\1\0" + CT + b"\1\1"))
    yield "extended negotiation that is cut", of_user(item(0x56, b"\0\x40" + CT))
    yield "common extended negotiation that is empty", of_user(item(0x57, b""))


def services() -> Iterator[tuple[str, bytes, str]]:
    dicom = b"1.2.840.10008."
    yield "private SOP class", PRIVATE, ""
    yield "storage class newer than any table", dicom + b"5.1.4.1.1.999.1", ""
    yield "RT Beams Delivery Instruction Storage", dicom + b"5.1.4.34.7", ""
    yield "retired storage: Standalone Overlay", dicom + b"5.1.4.1.1.8", ""
    yield "Verification", VERIFICATION, ""
    yield "Modality Worklist FIND", dicom + b"5.1.4.31", NO_STORAGE
    yield "Study Root FIND", dicom + b"5.1.4.1.2.2.1", NO_STORAGE
    yield "Storage Commitment Push", dicom + b"1.20.1", NO_STORAGE
    yield "Modality Performed Procedure Step", dicom + b"3.1.2.3.3", NO_STORAGE
    yield "Basic Grayscale Print", dicom + b"5.1.1.9", NO_STORAGE
    yield "VOI LUT Box", dicom + b"5.1.1.22", NO_STORAGE
    yield "UPS Push", dicom + b"5.1.4.34.6.1", NO_STORAGE
    yield "Color Palette FIND", dicom + b"5.1.4.39.2", NO_STORAGE
    yield "Inventory FIND", dicom + b"5.1.4.1.1.201.2", NO_STORAGE
    yield "Video Endoscopic Real-Time Communication", dicom + b"10.1", NO_STORAGE
    yield "Media Storage Directory", dicom + b"1.3.10", NO_STORAGE
    yield "a transfer syntax as abstract syntax", EXPLICIT, NO_STORAGE
    yield "a coding scheme as abstract syntax", dicom + b"2.16.4", NO_STORAGE
    yield "a UID of DICOM that means nothing yet", dicom + b"5.1.99", NO_STORAGE
    yield "Hanging Protocol Storage", dicom + b"5.1.4.38.1", NO_PATIENT
    yield "Color Palette Storage", dicom + b"5.1.4.39.1", NO_PATIENT
    yield "Generic Implant Template Storage", dicom + b"5.1.4.43.1", NO_PATIENT
    yield "Protocol Approval Storage", dicom + b"5.1.4.1.1.200.3", NO_PATIENT


def mutations() -> Iterator[Odd]:
    """A good request with some bytes other, missing or inserted; its PDU length is that of what comes."""
    rng = random.Random(1)
    good = of_user(item(0x55, b"V1"), item(0x54, b"\0\x19" + CT + b"\1\1"), item(0x53, b"\0\1\0\1"))[6:]
    for n in range(1, MUTATIONS + 1):
        at, size = rng.randrange(len(good)), rng.randint(1, 4)
        match n % 3:
            case 0:
                told, body = f"{size} bytes inserted at {at}", good[:at] + rng.randbytes(size) + good[at:]
            case 1:
                told, body = f"{size} bytes other at {at}", good[:at] + rng.randbytes(size) + good[at + size :]
            case _:
                told, body = f"{size} bytes missing at {at}", good[:at] + good[at + size :]
        yield Odd(f"mutation {n}: {told}", struct.pack(">BxL", 1, len(body)) + body)
