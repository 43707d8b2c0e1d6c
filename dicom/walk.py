"""Walk through a data set while it streams, and keep the wanted values. Sans-IO.

Rules:

- `feed` takes the bytes as they come; `end` is called when no more will come.
- Everything that is not wanted is skipped by its length and never kept: pixels, fragments, sequences.
- At most MAX_VALUE_BYTES + 1 bytes are kept of a wanted value; the extra byte shows that it was longer.
- Senders violate PS3.5 in known ways. What can be read is read, and `doubts` says what was wrong.
"""

import struct
from collections.abc import Collection, Mapping
from functools import lru_cache
from typing import NamedTuple

from dicom.deflate import Inflater

MAX_VALUE_BYTES = 1024  # PN, the longest of the wanted VRs, has at most 3 component groups of 64 characters
MAX_ITEMS = 15  # items that are kept of a wanted sequence; so many fit into a report, whatever their values
FREE_STEPS, STEPS_PER_BYTE = 2**19, 32  # most work for a deflated data set; a step is one skipped element, 0.3 us
STEPS_OF_OTHER = 8  # cost of an item, a sequence or a delimiter in steps
MAX_LEVELS = 2**16  # sequences and items that may be open at the same time, which bounds memory

ITEM, ITEM_DELIMITATION, SEQUENCE_DELIMITATION = 0xFFFEE000, 0xFFFEE00D, 0xFFFEE0DD  # PS3.5 §7.5
GROUP_OF_ITEMS, GROUP_OF_PIXELS = 0xFFFE, 0x7FE0
OF_ITEMS = GROUP_OF_ITEMS << 16  # tags from here on are items and delimiters
UNDEFINED_LENGTH = 0xFFFFFFFF
ZEROS = bytes(2**12)  # zeros that are skipped in one step
NOWHERE = 1 << 62  # a position beyond the end of any data set
LENGTH_OF_32_BITS = frozenset(
    (b"OB", b"OD", b"OF", b"OL", b"OV", b"OW", b"SQ", b"SV", b"UC", b"UN", b"UR", b"UT", b"UV")
)
LENGTH_OF_16_BITS = frozenset(
    (b"AE", b"AS", b"AT", b"CS", b"DA", b"DS", b"DT", b"FD", b"FL", b"IS", b"LO", b"LT", b"PN", b"SH", b"SL", b"SS",
     b"ST", b"TM", b"UI", b"UL", b"US")
)  # fmt: skip
KNOWN = LENGTH_OF_16_BITS | LENGTH_OF_32_BITS
EXPLICIT = {order: struct.Struct(order + "HH2sH") for order in "<>"}  # group, element, VR, length: PS3.5 §7.1.2
IMPLICIT = {order: struct.Struct(order + "HHL") for order in "<>"}  # PS3.5 §7.1.3
LENGTH = {order: struct.Struct(order + "L") for order in "<>"}
HEADER_BYTES, TWO_HEADERS = 8, 16  # the first header, and the next one's after an empty value, show the encoding

IMPLICIT_VR_LITTLE_ENDIAN = "1.2.840.10008.1.2"
EXPLICIT_VR_BIG_ENDIAN = "1.2.840.10008.1.2.2"
DEFLATED = {"1.2.840.10008.1.2.1.99", "1.2.840.10008.1.2.4.95", "1.2.840.10008.1.2.4.205"}  # PS3.5 A.5, A.7, A.10

# What can be wrong with a data set. None of these texts says anything about a patient.
CUT = "ends early"
DELIMITERS = "item or sequence delimiters that do not match"
BARE_ITEM = "an item outside of a sequence"
UNKNOWN_VR = "a value representation that is none"
OTHER_ENCODING = "encoded otherwise than its transfer syntax says"
UNORDERED = "elements out of order"
REPEATED = "an element more than once"
PADDED = "zeros between elements"
TOO_DEEP = f"more than {MAX_LEVELS} open sequences and items"
UNDEFINED = "a value that is kept has an undefined length"
TOO_MANY = "inflates to more elements than a data set has"
TOO_LONG = "a value that has more than its bytes around it"
MANY_ITEMS = f"more than {MAX_ITEMS} items of a sequence that is kept"

NOTHING: frozenset[int] = frozenset()


class Encoding(NamedTuple):
    """How elements are encoded (PS3.5 Annex A)."""

    implicit: bool
    order: str  # struct's byte order mark


class _Level(NamedTuple):
    """An open data set, sequence or item."""

    holds_elements: bool
    """If false, it holds items: it is a sequence, or the fragments of pixels."""
    encoding: Encoding
    wanted: Collection[int]
    until: int = NOWHERE
    """The position where it ends at the latest, by its own length or that of the level around it."""
    is_delimited: bool = False
    """If true, its length is undefined, and it ends at its delimiter."""


_level = lru_cache(maxsize=64)(_Level)  # equal levels share one object, which saves memory in deep nesting


IMPLICIT_ITEMS = Encoding(True, "<")  # of a UN of undefined length, PS3.5 §6.2.2
ENCODINGS = {IMPLICIT_VR_LITTLE_ENDIAN: IMPLICIT_ITEMS, EXPLICIT_VR_BIG_ENDIAN: Encoding(False, ">")}
EXPLICIT_LITTLE_ENDIAN = Encoding(False, "<")  # all other transfer syntaxes

_Header = tuple[int, int, int, Encoding]
"""The header of an element: tag, length, position of the value, and the encoding of items in it."""


class Walk:
    """The walk through one data set. `values` holds the wanted values as sent, `items` those in wanted sequences."""

    def __init__(
        self,
        transfer_syntax_uid: str,
        wanted: Mapping[int, bytes],
        in_items: Mapping[int, frozenset[int]],
        kept_bytes: int = 0,
    ) -> None:
        """Begin a walk. `wanted` maps tags to their VRs; `in_items` maps wanted sequences to the wanted tags in them.

        `kept_bytes` of the beginning are kept for another reader.
        """
        self.values: dict[int, bytes] = {}
        self.vrs: dict[int, bytes] = {}
        """The VRs of values that were sent with another VR than their own, if it is a known one."""
        self.items: list[dict[int, bytes]] = []
        self.doubts: dict[str, None] = {}
        """What is wrong with the data set, in the order in which it was found."""
        self.encoding = ENCODINGS.get(transfer_syntax_uid, EXPLICIT_LITTLE_ENDIAN)
        self._wanted = wanted
        self._in_items = in_items
        self._beginning: list[bytes] = []
        self._kept_bytes = kept_bytes  # still to be kept
        self._levels = [_Level(True, self.encoding, wanted)]
        self._begun = False
        self._at = 0  # where `_rest` begins
        self._rest = b""  # bytes that cannot be read until more come
        self._skip = 0  # bytes of an unwanted value that are still to come
        self._last = 0  # tag of the data set's last element
        self._behind_sequence = -1  # end of the last sequence with a defined length
        self._padded = -1  # end of the last zeros that are not an element
        self._steps = 0  # work done so far
        self._received = 0
        self._inflater = Inflater(KNOWN) if transfer_syntax_uid in DEFLATED else None

    @property
    def beginning(self) -> bytes:
        """Return the first `kept_bytes`, inflated, for another reader."""
        return b"".join(self._beginning)

    @property
    def kept_bytes(self) -> int:
        """Return how many bytes of values are kept."""
        return sum(map(len, self.values.values())) + sum(len(v) for item in self.items for v in item.values())

    def feed(self, data: bytes | memoryview) -> None:
        """Read the next bytes. What is needed of them is copied."""
        if self._inflater is None:
            self._take(data)
        else:
            self._received += len(data)
            for part in self._inflater.parts(data):
                self._take(part)
                if self._steps > FREE_STEPS + STEPS_PER_BYTE * self._received:
                    self._inflater.stop(TOO_MANY)

    def end(self) -> bool:
        """Finish the walk; return if the data set is complete. Zeros after it are ignored."""
        inflated = self._inflater is None or self._inflater.end()
        for reason in self._inflater.doubts if self._inflater else ():
            self._doubt(reason)
        self._leave(self._at)
        self._end_padding(self._at)
        cut = self._skip > 0 or len(self._levels) > 1 or bool(self._rest.strip(b"\0"))
        if cut:
            self._doubt(CUT)
        return inflated and not cut

    def _doubt(self, reason: str) -> None:
        self.doubts[reason] = None

    # --- the stream ---

    def _take(self, data: bytes | memoryview) -> None:
        if self._kept_bytes > 0:
            kept = bytes(data[: self._kept_bytes])
            self._beginning.append(kept)
            self._kept_bytes -= len(kept)
            self._pass(kept)
            data = data[len(kept) :]
        if data:
            self._pass(data)

    def _pass(self, data: bytes | memoryview) -> None:
        if self._skip:
            passed = min(self._skip, len(data))
            self._skip -= passed
            self._at += passed
            if passed == len(data):
                return
            data = data[passed:]
        if self._rest:
            data = self._rest + data
        p = self._elements(data)
        self._at += min(p, len(data))
        self._skip = max(0, p - len(data))
        self._rest = bytes(data[p:])

    # --- elements ---

    def _elements(self, data: bytes | memoryview) -> int:
        """Read the elements in `data`; return the position to continue at.

        It is beyond the end of `data` if the rest of a value has to be skipped.
        """
        end, p = len(data), 0
        if not self._begun and end >= TWO_HEADERS:
            self._begin(data)
        while self._begun and p < end:
            if self._levels[-1].holds_elements:
                p = self._plain(data, p, end)
            self._steps += STEPS_OF_OTHER
            self._leave(self._at + p)
            passed = self._padding(data, p, end) or self._other(data, p, end)
            if passed is None:
                break
            p = passed
        return p

    def _begin(self, data: bytes | memoryview) -> None:
        """Determine the encoding by the first element, whatever the transfer syntax says."""
        encoding = _seen(data[:TWO_HEADERS], _ordered(data, self.encoding))
        if encoding != self.encoding:
            self._doubt(OTHER_ENCODING)
            self.encoding = encoding
            self._levels[0] = self._levels[0]._replace(encoding=encoding)
        self._begun = True

    def _plain(self, data: bytes | memoryview, p: int, end: int) -> int:  # noqa: PLR0912 - one loop, since calls cost time
        """Read elements that are complete and regular, as nearly all are; return where the first other one begins."""
        level = self._levels[-1]
        (implicit, order), wanted = level.encoding, level.wanted
        outermost = len(self._levels) == 1
        values, last = (self.values, self._last) if outermost else (self.items[-1] if wanted else {}, 0)
        end = min(end, level.until - self._at)
        steps, vr = 0, b""
        whole, length_of = (IMPLICIT if implicit else EXPLICIT)[order].unpack_from, LENGTH[order].unpack_from
        while (start := p + 8) <= end:
            if implicit:
                group, element, length = whole(data, p)
            else:
                group, element, vr, length = whole(data, p)
                if vr not in LENGTH_OF_16_BITS:
                    if vr not in LENGTH_OF_32_BITS or p + 12 > end:
                        break
                    (length,) = length_of(data, start)
                    start += 4
                    if vr == b"SQ":
                        self._behind_sequence = self._at + start + length
            stop = start + length
            if stop > end or group >= GROUP_OF_ITEMS:
                break
            tag = group * 65536 + element  # faster in Python than shifts
            if tag <= last and outermost:
                if not tag | length:
                    break
                self._doubt(REPEATED if tag == last else UNORDERED)
            if tag in wanted:
                if tag in self._in_items:
                    break
                if tag in values or length > MAX_VALUE_BYTES:
                    self._keep(tag, vr, data[start : min(stop, start + MAX_VALUE_BYTES + 1)])
                else:
                    values[tag] = bytes(data[start:stop])
                    if vr and outermost and vr != self._wanted[tag]:
                        self.vrs[tag] = vr
            last = tag
            p = stop
            steps += 1
        self._steps += steps
        if outermost:
            self._last = last
        return p

    def _other(self, data: bytes | memoryview, p: int, end: int) -> int | None:
        """Read one element that `_plain` leaves over; return where to go on, or None if more bytes are needed.

        1. Delimiters and items open and close levels.
        2. An element where an item has to be ends the sequence.
        3. A sequence, or a value of undefined length, opens a level.
        4. A wanted value is kept once it has come completely; any other one is skipped.
        """
        level = self._levels[-1]
        header = self._header(data, p, end, level.encoding)
        if header is None:
            return None
        tag, length, start, inner = header
        if start > level.until - self._at:
            self._doubt(TOO_LONG)
        if tag >= OF_ITEMS:
            return self._item_or_delimiter(data, header, end)
        if not level.holds_elements:  # an element where an item has to be: the sequence is over
            self._doubt(DELIMITERS)
            self._levels.pop()
            return p
        is_wanted = tag in level.wanted
        kept = max(0, min(length, MAX_VALUE_BYTES + 1, level.until - self._at - start))
        if is_wanted and tag not in self._in_items and length != UNDEFINED_LENGTH and start + kept > end:
            return None
        if len(self._levels) == 1:
            if tag <= self._last:
                self._doubt(REPEATED if tag == self._last else UNORDERED)
            self._last = tag
        if length == UNDEFINED_LENGTH or (is_wanted and tag in self._in_items):
            if is_wanted and tag not in self._in_items:
                self._doubt(UNDEFINED)
            of_items = self._in_items[tag] if is_wanted and tag in self._in_items else NOTHING
            return self._open(False, inner, of_items, start, length)
        if is_wanted:
            vr = b"" if level.encoding.implicit else bytes(data[p + 4 : p + 6])
            self._keep(tag, vr if vr in KNOWN else b"", data[start : start + kept])
        if start + length > level.until - self._at:
            self._doubt(TOO_LONG)
        return min(start + length, level.until - self._at)

    def _padding(self, data: bytes | memoryview, p: int, end: int) -> int:
        """Skip zeros in the place of an element; return where they end, or 0 if there are none.

        At the end of a data set they are padding. Between elements they are a doubt.
        """
        if p + 8 > end or data[p] or len(self._levels) > 1 or any(data[p : p + 8]):
            return 0
        self._end_padding(self._at + p)
        while bytes(data[p : p + len(ZEROS)]) == ZEROS:
            p += len(ZEROS)
        while bytes(data[p : p + 8]) == ZEROS[:8]:
            p += 8
        self._padded = self._at + p
        return p

    def _end_padding(self, at: int) -> None:
        if self._padded not in (-1, at):
            self._doubt(PADDED)

    def _keep(self, tag: int, vr: bytes, value: bytes | memoryview) -> None:
        """Keep a value. Of a repeated element the last value counts, as in pydicom, unless it is empty or too long.

        `vr` is empty if it is not known.
        """
        outermost = len(self._levels) == 1
        values = self.values if outermost else self.items[-1]
        if tag in values:
            self._doubt(REPEATED)
        if tag not in values or 0 < len(value) <= MAX_VALUE_BYTES:
            values[tag] = bytes(value)
            if outermost and vr and vr != self._wanted[tag]:
                self.vrs[tag] = vr
            elif outermost:
                self.vrs.pop(tag, None)

    def _header(self, data: bytes | memoryview, p: int, end: int, encoding: Encoding) -> _Header | None:
        """Read the header of the element at p (PS3.5 §7.1, §6.2.2 note on UN); None if it is not complete yet."""
        if p + 8 > end:
            return None
        implicit, order = encoding
        group, element, vr, length = EXPLICIT[order].unpack_from(data, p)
        tag = group << 16 | element
        if implicit or tag >= OF_ITEMS:
            return (tag, LENGTH[order].unpack_from(data, p + 4)[0], p + 8, encoding)
        if vr in LENGTH_OF_16_BITS:
            return (tag, length, p + 8, encoding)
        if vr not in LENGTH_OF_32_BITS:
            return self._of_unknown_vr(data, p, end, encoding)
        if p + 12 > end:
            return None
        (length,) = LENGTH[order].unpack_from(data, p + 8)
        if vr == b"SQ":
            self._behind_sequence = self._at + p + 12 + length
        as_un = vr == b"UN" and length == UNDEFINED_LENGTH
        return (tag, length, p + 12, IMPLICIT_ITEMS if as_un else encoding)

    def _of_unknown_vr(self, data: bytes | memoryview, p: int, end: int, encoding: Encoding) -> _Header | None:
        """Read the header of an element whose VR is unknown. Its length has 16 bits, as in DCMTK, with two exceptions:

        1. Two capitals followed by zeros may be a VR of a later edition, with a length of 32 bits (PS3.5 §7.1.2).
        2. Pixels, an undefined length, or bytes that cannot be a VR before a value: the element has an implicit VR.
        """
        order = encoding.order
        group, element, vr, length = EXPLICIT[order].unpack_from(data, p)
        (as_implicit,) = LENGTH[order].unpack_from(data, p + 4)
        tag = group << 16 | element
        if vr.isalpha() and vr.isupper():
            if p + 14 > end:
                return None
            self._doubt(UNKNOWN_VR)
            if length == 0 and bytes(data[p + 12 : p + 14]) not in KNOWN:
                return (tag, LENGTH[order].unpack_from(data, p + 8)[0], p + 12, encoding)
            return (tag, length, p + 8, encoding)
        may_be_implicit = length == 0 and not _is_text(vr)
        if may_be_implicit and as_implicit >= HEADER_BYTES:
            if p + TWO_HEADERS > end:
                return None
            may_be_implicit = not _is_before_another(data[p : p + TWO_HEADERS], encoding.order)
        if as_implicit == UNDEFINED_LENGTH or group == GROUP_OF_PIXELS or may_be_implicit:
            self._doubt(OTHER_ENCODING)
            return (tag, as_implicit, p + 8, encoding)
        self._doubt(UNKNOWN_VR)
        return (tag, length, p + 8, encoding)

    # --- sequences and items ---

    def _item_or_delimiter(self, data: bytes | memoryview, header: _Header, end: int) -> int | None:
        tag, length, start, _ = header
        if tag == ITEM:
            level = self._levels[-1]
            if length != UNDEFINED_LENGTH and not level.holds_elements and not level.wanted:
                return start + length  # the usual case
            return self._item(data, header, end)
        if tag == SEQUENCE_DELIMITATION:
            self._end_sequence(start - 8)
        elif tag == ITEM_DELIMITATION:
            self._end_item()
        else:
            self._doubt(DELIMITERS)
        return start

    def _item(self, data: bytes | memoryview, header: _Header, end: int) -> int | None:
        _, length, start, encoding = header
        is_inside, left_open = self._levels[-1].holds_elements, self._is_left_open()
        of_sequence = self._levels[-2 if left_open else -1].wanted
        wanted = of_sequence if isinstance(of_sequence, frozenset) and (left_open or not is_inside) else NOTHING
        if wanted and len(self.items) >= MAX_ITEMS:
            self._doubt(MANY_ITEMS)
            wanted = NOTHING
        opens = bool(wanted) or length == UNDEFINED_LENGTH
        inner = self._encoding_of_item(data, header, end, -2 if left_open else -1) if opens and length else encoding
        if inner is None:
            return None
        if inner != encoding:
            self._doubt(OTHER_ENCODING)
        if is_inside:
            self._doubt(DELIMITERS if left_open else BARE_ITEM)
        if left_open:
            self._levels.pop()
        if not opens:
            return start + length
        self.items += [{}] if wanted else []
        return self._open(True, inner, wanted, start, length)

    def _encoding_of_item(self, data: bytes | memoryview, header: _Header, end: int, sequence: int) -> Encoding | None:
        """Return the encoding that an item's first element shows; None if more bytes are needed.

        Items that should be implicit are checked for explicit VRs only directly in a UN of undefined length. Elsewhere
        the bytes of a length may look like a VR by chance.
        """
        _, length, start, encoding = header
        if not encoding.implicit:
            behind = start + max(HEADER_BYTES, min(length, TWO_HEADERS))
            return _seen(data[start:behind], encoding) if behind <= end else None
        levels = self._levels
        if levels[sequence].holds_elements or levels[sequence - 1].encoding.implicit:
            return encoding
        is_explicit = _is_explicit(data, start, end, start + length, encoding.order)
        return None if is_explicit is None else encoding._replace(implicit=not is_explicit)

    def _is_left_open(self) -> bool:
        """Tell if the innermost level is an item of a sequence that still waits for its delimiter."""
        levels = self._levels
        return levels[-1].is_delimited and levels[-1].holds_elements and not levels[-2].holds_elements

    def _leave(self, at: int) -> None:
        """Close all levels that end at this position or before it."""
        while self._levels[-1].until <= at:
            if self._levels.pop().is_delimited:
                self._doubt(DELIMITERS)

    def _open(self, holds_elements: bool, encoding: Encoding, wanted: frozenset[int], start: int, length: int) -> int:
        if len(self._levels) >= MAX_LEVELS:
            self._doubt(TOO_DEEP)
            return NOWHERE
        is_delimited, until = length == UNDEFINED_LENGTH, self._levels[-1].until
        if not is_delimited:
            if self._at + start + length > until:
                self._doubt(TOO_LONG)
            until = min(until, self._at + start + length)
        self._levels.append(_level(holds_elements, encoding, wanted, until, is_delimited))
        return start

    def _end_item(self) -> None:
        """Handle an item delimiter: close the item that waits for it, if there is one."""
        level = self._levels[-1]
        if level.is_delimited and level.holds_elements:
            self._levels.pop()
        else:
            self._doubt(DELIMITERS)

    def _end_sequence(self, p: int) -> None:
        """Handle a sequence delimiter: close the sequence that waits for it, and items in it that were left open."""
        levels, at = self._levels, len(self._levels) - 1
        if levels[-1].holds_elements and self._behind_sequence == self._at + p:
            self._doubt(DELIMITERS)  # it follows a sequence that had a defined length
            return
        while levels[at].is_delimited and levels[at].holds_elements:
            at -= 1
        is_bare = levels[at].holds_elements and at < len(levels) - 1  # it closes bare items
        if not is_bare and (not levels[at].is_delimited or at < len(levels) - 1):
            self._doubt(DELIMITERS)
        del levels[at if levels[at].is_delimited else at + 1 :]


def _ordered(data: bytes | memoryview, encoding: Encoding) -> Encoding:
    """Return the other byte order if the first group can be 0x0008 only there, and most numbers are smaller in it."""
    numbers = _numbers(data, encoding)
    if not numbers[0] or numbers[0] & 0xFF:
        return encoding
    other = encoding._replace(order="<" if encoding.order == ">" else ">")
    return other if sum(map(int.__lt__, _numbers(data, other), numbers)) > 1 else encoding


def _numbers(data: bytes | memoryview, encoding: Encoding) -> tuple[int, int, int]:
    """Return group, element and length of the first element."""
    if encoding.implicit:
        return IMPLICIT[encoding.order].unpack_from(data)
    group, element, _, length = EXPLICIT[encoding.order].unpack_from(data)
    return group, element, length


def _is_text(vr: bytes) -> bool:
    """Tell if two bytes may be in the place of a VR: two characters, or zeros."""
    return vr == b"\0\0" or all(0x20 <= c < 0x7F for c in vr)


def _is_before_another(headers: bytes | memoryview, order: str) -> bool:
    """Tell if an element is empty, because another element with an explicit VR and a higher tag follows its header."""
    if len(headers) < TWO_HEADERS:
        return False
    group, element, _, _ = EXPLICIT[order].unpack_from(headers)
    next_group, next_element, vr, _ = EXPLICIT[order].unpack_from(headers, HEADER_BYTES)
    return (group, element) < (next_group, next_element) and vr in KNOWN


def _seen(headers: bytes | memoryview, encoding: Encoding) -> Encoding:
    """Return the encoding that an element's header shows: the expected one, unless the VR's place contradicts it."""
    group, _, vr, length = EXPLICIT[encoding.order].unpack_from(headers)
    if group == GROUP_OF_ITEMS:
        return encoding
    if encoding.implicit and vr in KNOWN and (length == 0 or vr in LENGTH_OF_16_BITS):
        return encoding._replace(implicit=False)
    if encoding.implicit or _is_text(vr) or length not in (0, 0xFFFF) or _is_before_another(headers, encoding.order):
        return encoding
    return encoding._replace(implicit=True)


def _is_explicit(data: bytes | memoryview, p: int, end: int, until: int, order: str) -> bool | None:
    """Tell if the element at p has an explicit VR, also by the element after it; None if more bytes are needed."""
    if p + 12 > end:
        return None
    group, element, vr, length = EXPLICIT[order].unpack_from(data, p)
    start, is_undefined = p + 8, False
    if vr in LENGTH_OF_32_BITS and length == 0:
        (length,) = LENGTH[order].unpack_from(data, p + 8)
        start, is_undefined = p + 12, length == UNDEFINED_LENGTH
    elif vr not in LENGTH_OF_16_BITS:
        return False
    stop = start if is_undefined else start + length
    if stop == until or stop + 8 > min(until, p + MAX_VALUE_BYTES):
        return stop == until
    if stop + 8 > end:
        return None
    next_group, next_element, vr, length = EXPLICIT[order].unpack_from(data, stop)
    if next_group == GROUP_OF_ITEMS:
        return next_group << 16 | next_element in (ITEM, ITEM_DELIMITATION, SEQUENCE_DELIMITATION)
    is_next = (group, element) < (next_group, next_element)
    is_next &= stop - start > 1 or group == next_group  # an empty value may be a length that spells a VR
    return is_next and not is_undefined and (vr in LENGTH_OF_16_BITS or (vr in KNOWN and length == 0))
