"""Decode text of a data set by its Specific Character Set (PS3.3 §C.12.1.1.2, code extensions PS3.5 §6.1.2.5)."""

import contextlib
import re
from collections.abc import Sequence
from functools import lru_cache

from pydicom.charset import CODES_TO_ENCODINGS, python_encoding

ISO_646 = ("", "ISO_IR 6", "ISO 2022 IR 6")
COMMON_NAMES = re.compile(r"utf8|ascii|latin1|iso8859[0-9]+|(windows|cp)125[0-9]|shiftjis|eucjp|euckr|gb2312|big5")
INTO_G1 = (b"\x1b)", b"\x1b-", b"\x1b$)")  # change the upper half of the bytes, others the lower (PS3.5 §6.1.2.5.1)


def decode_text(value: bytes, vr: str, charset: Sequence[str]) -> str:
    """Decode text strictly, except for one omission of senders: see `_decode_part`.

    Raises UnicodeError or LookupError if the text could only be guessed.
    """
    default = codec_of(charset[0]) if vr in ("PN", "LO", "SH") else "ascii"
    value = value.rstrip(b"\0 ")  # padding does not belong to the last escaped character set
    if b"\x1b" not in value:
        return value.decode(default)
    delimiters = rb"[\\\r\n\t\f^=]" if vr == "PN" else rb"[\\\r\n\t\f]"
    text, upper = "", default
    for part in re.findall(rb"\x1b[^\x1b]*|^[^\x1b]+", value):
        if part.startswith(INTO_G1):
            upper = CODES_TO_ENCODINGS[_escape(part)]
        text += _decode_part(part, default, upper, delimiters)
    return text


@lru_cache
def codec_of(term: str) -> str:
    """Return Python's codec for a defined term. ISO 646 is ASCII, not Latin-1 as in pydicom. Raises LookupError."""
    known = _KNOWN.get(_letters(term))
    if known is not None:
        return "ascii" if known in ISO_646 else python_encoding[known]
    name = _letters(term).lower()
    if COMMON_NAMES.fullmatch(name):
        return name.replace("windows", "cp").replace("iso8859", "iso8859_")
    raise LookupError(term)


def is_defined_term(term: str) -> bool:
    """Tell if a term is defined in PS3.3 §C.12.1.1.2. `codec_of` also knows some misspelt ones."""
    return term in python_encoding


def _letters(term: str) -> str:
    """Return only letters and digits of a term: senders write `ISO-IR 144`, `ISO_2022_IR_6`, `ISO IR 192`."""
    return re.sub(r"[^0-9A-Z]", "", term.upper())


_KNOWN = {_letters(term): term for term in reversed(python_encoding)}  # ISO_IR 100 before ISO 2022 IR 100


def _escape(part: bytes) -> bytes:
    return part[: 4 if part.startswith((b"\x1b$(", b"\x1b$)")) else 3]


def _decode_part(part: bytes, default: str, upper: str, delimiters: bytes) -> str:
    """Decode the text after one escape sequence.

    A delimiter returns to the default character set. Some senders omit the escape sequence that is needed after the
    delimiter. If the text cannot be decoded by the default set, the last set of the upper half is used, as viewers do.
    """
    if not part.startswith(b"\x1b"):
        return part.decode(default)
    escape = _escape(part)
    codec = CODES_TO_ENCODINGS[escape]
    if codec.startswith("iso2022"):
        return part.decode(codec)  # this codec reads escape sequences itself
    text = part[len(escape) :]
    if escape == b"\x1b(B":  # ASCII in the lower half; the upper half stays as it was
        return text.decode("ascii" if text.isascii() else upper)
    at = found.start() if (found := re.search(delimiters, text)) else len(text)
    return text[:at].decode(codec) + _decode_rest(text[at:], default, upper)


def _decode_rest(text: bytes, default: str, upper: str) -> str:
    try:
        return text.decode(default)
    except UnicodeDecodeError:
        return text.decode(upper)


def guess(value: bytes) -> str:
    """Guess a text for bytes that contradict their character set: by escape sequences, as UTF-8, or as Latin-1."""
    return "".join(map(_guess_part, re.findall(rb"\x1b[^\x1b]*|^[^\x1b]+", value)))


def _guess_part(part: bytes) -> str:
    with contextlib.suppress(UnicodeError, LookupError):
        return _decode_part(part, "utf-8", "latin-1", rb"[\\\r\n\t\f^=]")
    return part.decode("latin-1")
