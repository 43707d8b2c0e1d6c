"""A data set as it streams, from its first byte to its last: the values that are wanted, and what is odd. Sans-IO.

Rules. `feed` takes the bytes as they come, `end` says that no more will. What is not wanted is skipped by its length
and never kept: pixels, fragments, sequences. Of what is wanted MAX_VALUE_BYTES are kept, and one byte more, so that it
shows where it is longer. Senders break PS3.5 in known ways: what can be read all the same is, and `doubts` says what it
was.
"""

import struct
from collections.abc import Collection, Mapping
from functools import lru_cache
from typing import NamedTuple

from dicom.deflate import Inflater

MAX_VALUE_BYTES = 1024  # PN, the longest of the wanted VRs, has at most 3 component groups of 64 characters
MAX_ITEMS = 15  # of a sequence whose items are wanted: as many as fit into a report, whatever their values
FREE_STEPS, STEPS_PER_BYTE = 2**19, 32  # of a deflated data set; a step is an element that is passed: 0.3 us
STEPS_OF_OTHER = 8  # what an item, a sequence or a delimiter costs
MAX_LEVELS = 2**16  # sequences and items open at once; their list is what grows with them

ITEM, ITEM_DELIMITATION, SEQUENCE_DELIMITATION = 0xFFFEE000, 0xFFFEE00D, 0xFFFEE0DD  # PS3.5 §7.5
GROUP_OF_ITEMS, GROUP_OF_PIXELS = 0xFFFE, 0x7FE0
OF_ITEMS = GROUP_OF_ITEMS << 16  # the tags from here on are of items
UNDEFINED_LENGTH = 0xFFFFFFFF
ZEROS = bytes(2**12)  # how many are passed at once
NOWHERE = 1 << 62  # further than any data set goes
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
HEADER_BYTES, TWO_HEADERS = 8, 16  # an element's header and, if it has no value, the next one's show how it is encoded

IMPLICIT_VR_LITTLE_ENDIAN = "1.2.840.10008.1.2"
EXPLICIT_VR_BIG_ENDIAN = "1.2.840.10008.1.2.2"
DEFLATED = {"1.2.840.10008.1.2.1.99", "1.2.840.10008.1.2.4.95", "1.2.840.10008.1.2.4.205"}  # PS3.5 A.5, A.7, A.10

# What can be odd. None of these says anything of a patient.
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
    """A data set, a sequence or an item that is open."""

    holds_elements: bool
    """Else items: it is a sequence, or the fragments of pixels."""
    encoding: Encoding
    wanted: Collection[int]
    until: int = NOWHERE
    """Where it ends at the latest: by its length, or by that of what it stands in."""
    is_delimited: bool = False
    """It has no length of its own: it ends at its delimiter."""


_level = lru_cache(maxsize=64)(_Level)  # one object for all that are equal, however deep they are nested


IMPLICIT_ITEMS = Encoding(True, "<")  # of a UN of undefined length, PS3.5 §6.2.2
ENCODINGS = {IMPLICIT_VR_LITTLE_ENDIAN: IMPLICIT_ITEMS, EXPLICIT_VR_BIG_ENDIAN: Encoding(False, ">")}
EXPLICIT_LITTLE_ENDIAN = Encoding(False, "<")  # all other transfer syntaxes

_Header = tuple[int, int, int, Encoding]
"""What stands before a value: tag, length, where the value starts, how items in it are encoded."""


class Walk:
    """One data set. `values` are the wanted elements' as sent, `items` those of wanted sequences, item by item."""

    def __init__(
        self,
        transfer_syntax_uid: str,
        wanted: Mapping[int, bytes],
        in_items: Mapping[int, frozenset[int]],
        kept_bytes: int = 0,
    ) -> None:
        """`wanted`: the VR that each should have. `in_items`: sequences among them, and what of their items is."""
        self.values: dict[int, bytes] = {}
        self.vrs: dict[int, bytes] = {}
        """Of those of `values` that were sent with another VR than they should have; known ones only."""
        self.items: list[dict[int, bytes]] = []
        self.doubts: dict[str, None] = {}
        """What is odd, in the order in which it was met."""
        self.encoding = ENCODINGS.get(transfer_syntax_uid, EXPLICIT_LITTLE_ENDIAN)
        self._wanted = wanted
        self._in_items = in_items
        self._beginning: list[bytes] = []
        self._kept_bytes = kept_bytes  # still to be kept
        self._levels = [_Level(True, self.encoding, wanted)]
        self._begun = False
        self._at = 0  # where `_rest` begins
        self._rest = b""  # what has come and means nothing without what comes next
        self._skip = 0  # bytes of a value that is not wanted, still to come
        self._last = 0  # tag of the data set's last element
        self._behind_sequence = -1  # where the last sequence ended that said its length
        self._padded = -1  # where zeros ended that are no element
        self._steps = 0  # what was done, in elements that are passed
        self._received = 0
        self._inflater = Inflater(KNOWN) if transfer_syntax_uid in DEFLATED else None

    @property
    def beginning(self) -> bytes:
        """The first `kept_bytes`, inflated: for another reader to try."""
        return b"".join(self._beginning)

    def feed(self, data: bytes | memoryview) -> None:
        """Go on with the next bytes; what is needed of them is copied."""
        if self._inflater is None:
            self._take(data)
        else:
            self._received += len(data)
            for part in self._inflater.parts(data):
                self._take(part)
                if self._steps > FREE_STEPS + STEPS_PER_BYTE * self._received:
                    self._inflater.stop(TOO_MANY)

    def end(self) -> bool:
        """Whether it ended where it says that it does; zeros behind that are none of it."""
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
            data = bytes(data)
            self._beginning.append(data[: self._kept_bytes])
            self._kept_bytes -= len(data)
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
        """Pass what is there; where to go on, which is behind `data` where the rest of a value is skipped."""
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
        """See by the first element how the data set is encoded, whatever its transfer syntax says."""
        encoding = _seen(data[:TWO_HEADERS], _ordered(data, self.encoding))
        if encoding != self.encoding:
            self._doubt(OTHER_ENCODING)
            self.encoding = encoding
            self._levels[0] = self._levels[0]._replace(encoding=encoding)
        self._begun = True

    def _plain(self, data: bytes | memoryview, p: int, end: int) -> int:  # noqa: PLR0912 - one loop, for calls cost
        """Pass elements that are whole and as they should be: nearly all. Where the first other one begins."""
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
            tag = group * 65536 + element  # Python is quicker with it than with shifts
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
        """Pass a delimiter, an item, a sequence, a value that is not whole. None: more has to come."""
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
        """Where zeros end that stand where an element would be; behind a data set they are none of it. 0: no zeros."""
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
        """The last value of an element stands, as with pydicom, unless it is empty or too long: then it is none.

        `vr`: empty where none is known.
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
        """What stands before the value at p (PS3.5 §7.1, §6.2.2 note on UN); None where it is not whole."""
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
        """A VR that is none has a length of 16 bits, as DCMTK reads it, unless what stands there shows otherwise.

        1. Two capitals and zeros may be a VR of a later edition, of 32 bits (PS3.5 §7.1.2).
        2. Pixels, an undefined length, and what can be no characters and has a value: an element of implicit VR.
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
                return start + length  # nearly all of them
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
        """How an item's first element shows that it is encoded; None: more has to come.

        Implicit items are explicit only directly below a UN of undefined length: elsewhere lengths spell VRs by chance.
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
        """Whether the innermost level is an item of a sequence, and waits for its delimiter."""
        levels = self._levels
        return levels[-1].is_delimited and levels[-1].holds_elements and not levels[-2].holds_elements

    def _leave(self, at: int) -> None:
        """Close what ends here at the latest."""
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
        """An item delimiter: it closes the item that waits for it, or nothing."""
        level = self._levels[-1]
        if level.is_delimited and level.holds_elements:
            self._levels.pop()
        else:
            self._doubt(DELIMITERS)

    def _end_sequence(self, p: int) -> None:
        """A sequence delimiter: it closes the sequence that waits for it, with an item left open in it; or nothing."""
        levels, at = self._levels, len(self._levels) - 1
        if levels[-1].holds_elements and self._behind_sequence == self._at + p:
            self._doubt(DELIMITERS)  # of a sequence that has said its length
            return
        while levels[at].is_delimited and levels[at].holds_elements:
            at -= 1
        is_bare = levels[at].holds_elements and at < len(levels) - 1  # it closes bare items
        if not is_bare and (not levels[at].is_delimited or at < len(levels) - 1):
            self._doubt(DELIMITERS)
        del levels[at if levels[at].is_delimited else at + 1 :]


def _ordered(data: bytes | memoryview, encoding: Encoding) -> Encoding:
    """Return it in the other byte order if the first group is 0x0008 there, and most of the numbers are smaller."""
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
    """Return whether it may stand for a VR: none at all, or two characters."""
    return vr == b"\0\0" or all(0x20 <= c < 0x7F for c in vr)


def _is_before_another(headers: bytes | memoryview, order: str) -> bool:
    """Whether an element has no value, for behind its header stands one of explicit VR that comes after it."""
    if len(headers) < TWO_HEADERS:
        return False
    group, element, _, _ = EXPLICIT[order].unpack_from(headers)
    next_group, next_element, vr, _ = EXPLICIT[order].unpack_from(headers, HEADER_BYTES)
    return (group, element) < (next_group, next_element) and vr in KNOWN


def _seen(headers: bytes | memoryview, encoding: Encoding) -> Encoding:
    """How an element is encoded, by what stands where its VR would be and behind it: else as it should be."""
    group, _, vr, length = EXPLICIT[encoding.order].unpack_from(headers)
    if group == GROUP_OF_ITEMS:
        return encoding
    if encoding.implicit and vr in KNOWN and (length == 0 or vr in LENGTH_OF_16_BITS):
        return encoding._replace(implicit=False)
    if encoding.implicit or _is_text(vr) or length not in (0, 0xFFFF) or _is_before_another(headers, encoding.order):
        return encoding
    return encoding._replace(implicit=True)


def _is_explicit(data: bytes | memoryview, p: int, end: int, until: int, order: str) -> bool | None:
    """Whether the element at p has an explicit VR, by what stands behind it, too; None: more has to come."""
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
