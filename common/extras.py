"""Parse GATEWAY_EXTRA_ATTRIBUTES: the attributes that a site wants kept in addition to those that always are."""

import re
from typing import NamedTuple
from urllib.parse import unquote

MOST = 32  # most entries of one gateway, since a row holds 100 attributes
MAX_NAME_OF_IMAGES = 64 - len("OfImages")  # characters of a name with *; "OfImages" is added, and 64 are the limit
AN_ENTRY = re.compile(
    r"(?:(?P<name>[A-Za-z][A-Za-z0-9]{0,39})=)?"
    r"(?:(?P<keyword>[A-Za-z][A-Za-z0-9]{1,63})|\(?(?P<group>[0-9A-Fa-f]{4}),?(?P<element>[0-9A-Fa-f]{4})\)?"
    r"|\((?P<odd>[0-9A-Fa-f]{4}),(?P<low>[0-9A-Fa-f]{2}),(?P<creator>[^,;\\()]{1,64}?)(?:,(?P<vr>[A-Z]{2}))?\))"
    r"(?P<each>\*)?"
)
FORM = (
    "write EchoTime, (0018,0081), or a private one with its creator, (0019,0C,SIEMENS MR HEADER), separated by ; "
    "- in a creator %2C is a comma, %3B a semicolon, %28 and %29 parentheses, %25 a per cent sign"
)
NUMBERS = {"US": "H", "SS": "h", "UL": "L", "SL": "l", "UV": "Q", "SV": "q", "FL": "f", "FD": "d"}  # struct's
TEXTS = {"AE", "AS", "CS", "DA", "DS", "DT", "IS", "LO", "LT", "PN", "SH", "ST", "TM", "UC", "UI", "UR", "UT"}


class Extra(NamedTuple):
    """One attribute to keep."""

    name: str
    """Its name in a report's `Attributes`."""
    tag: int
    """The tag. If the attribute is private: its group, and the low byte of its element number."""
    vr: str
    creator: str = ""
    """The private creator, which reserves the block of elements (PS3.5 §7.8.1); empty if it is not private."""
    of_images: bool = False
    """If true, the values of all images are kept; if false, the first of the series."""

    @property
    def tags(self) -> frozenset[int]:
        """Return every tag that may hold the attribute or, if it is private, its creator."""
        if not self.creator:
            return frozenset((self.tag,))
        group, low = self.tag & 0xFFFF0000, self.tag & 0xFF
        return frozenset(group | found for block in range(0x10, 0x100) for found in (block, block << 8 | low))


def extras(text: str) -> tuple[Extra, ...]:
    """Parse the setting. Raises ValueError, which names the wrong entry and how to fix it."""
    found = [_extra(entry.strip()) for entry in text.split(";") if entry.strip()]
    if len(found) > MOST:
        raise ValueError(f"GATEWAY_EXTRA_ATTRIBUTES has {len(found)} entries: give at most {MOST}")
    names = [(extra.name, extra.of_images) for extra in found]
    for name, of_images in names:
        if names.count((name, of_images)) > 1:
            raise ValueError(
                f"GATEWAY_EXTRA_ATTRIBUTES has {name} twice: remove one, or give it a name: Other=(0019,0C,CREATOR)"
            )
    return tuple(found)


def _extra(entry: str) -> Extra:
    parts = AN_ENTRY.fullmatch(entry)
    if parts is None:
        raise ValueError(f"GATEWAY_EXTRA_ATTRIBUTES entry {entry!r} cannot be read: {FORM}")
    extra = _private(entry, parts) if parts["odd"] else _public(entry, parts)
    if extra.vr not in NUMBERS.keys() | TEXTS:
        raise ValueError(
            f"GATEWAY_EXTRA_ATTRIBUTES entry {entry!r} has VR {extra.vr}, which is neither text nor number: remove it"
        )
    if parts["name"] and _tag_of(parts["name"]) is not None:
        raise ValueError(
            f"GATEWAY_EXTRA_ATTRIBUTES entry {entry!r} has the name of another attribute: choose another name"
        )
    extra = extra._replace(name=parts["name"] or extra.name, of_images=bool(parts["each"]))
    if extra.of_images and len(extra.name) > MAX_NAME_OF_IMAGES:
        raise ValueError(
            f"GATEWAY_EXTRA_ATTRIBUTES entry {entry!r} has too long a name for the values of all images: "
            f"give it a name of at most 40 characters: Short={entry}"
        )
    return extra


def _private(entry: str, parts: re.Match[str]) -> Extra:
    group, low = int(parts["odd"], 16), int(parts["low"], 16)
    if not group % 2:
        raise ValueError(f"GATEWAY_EXTRA_ATTRIBUTES entry {entry!r} is not private, since its group is even: {FORM}")
    name = f"{group:04X}xx{low:02X}"
    return Extra(name, group << 16 | low, parts["vr"] or "LO", unquote(parts["creator"]).strip())


def _tag_of(keyword: str) -> int | None:
    # Importing pydicom's dictionary takes a third of a second, and every command imports this module.
    from pydicom.datadict import tag_for_keyword

    return tag_for_keyword(keyword)


def _public(entry: str, parts: re.Match[str]) -> Extra:
    from pydicom.datadict import dictionary_VR, keyword_for_tag

    tag = _tag_of(parts["keyword"]) if parts["keyword"] else int(parts["group"] + parts["element"], 16)
    keyword = keyword_for_tag(tag) if tag is not None else ""
    if tag is None or not keyword:
        raise ValueError(f"GATEWAY_EXTRA_ATTRIBUTES entry {entry!r} is not an attribute of PS3.6: {FORM}")
    return Extra(keyword, tag, dictionary_VR(tag).partition(" ")[0])
