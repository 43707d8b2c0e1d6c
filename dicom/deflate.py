"""Inflate a deflated data set while it streams (PS3.5 A.5), part by part and up to a limit. Sans-IO."""

import zlib
from collections.abc import Iterator

MAX_INFLATED_BYTES = 2**26  # of one data set: takes one core 0.2 s; walk.py bounds the cost of its elements
AT_ONCE = 2**16  # bytes that are inflated in one part
ENOUGH = 8  # bytes, an element's header, that show if a data set is deflated

INFLATED = f"inflates to more than {MAX_INFLATED_BYTES >> 20} MiB"
NOT_DEFLATED = "cannot be inflated to its end"
NOT_AS_SAID = "not deflated, or with a zlib header"


class Inflater:
    """Inflates one data set. It also reads data sets that are not deflated at all, or have a zlib header."""

    def __init__(self, known_vrs: frozenset[bytes]) -> None:
        self.doubts: list[str] = []
        self._known_vrs = known_vrs
        self._zlib: zlib._Decompress | None = None
        self._begun = b""
        self._is_plain = False
        self._stopped = False
        self._bounded = False  # a limit stopped it
        self._inflated = 0

    def parts(self, data: bytes | memoryview) -> Iterator[bytes | memoryview]:
        """Yield the next bytes, inflated."""
        if self._zlib is None and not self._is_plain:
            self._begun += data
            if len(self._begun) < ENOUGH:
                return
            data, self._begun = self._begun, b""
            self._begin(data)
        if self._zlib is None:
            yield data
        else:
            yield from self._inflate(self._zlib, data)

    def end(self) -> bool:
        """Tell if the data set was inflated to its end; otherwise note a doubt."""
        if self._is_plain or (self._zlib is not None and self._zlib.eof and not self._bounded):
            return True
        if not self._bounded:
            self.doubts.append(NOT_DEFLATED)
        return False

    def stop(self, reason: str) -> None:
        """Stop inflating, and note the reason as a doubt."""
        self.doubts.append(reason)
        self._stopped = self._bounded = True

    def _begin(self, data: bytes) -> None:
        with_header = data[0] & 0x0F == zlib.DEFLATED and (data[0] << 8 | data[1]) % 31 == 0  # RFC 1950 §2.2
        self._is_plain = data[4:6] in self._known_vrs and not data[1]
        if not self._is_plain:
            self._zlib = zlib.decompressobj(zlib.MAX_WBITS if with_header else -zlib.MAX_WBITS)
        if self._is_plain or with_header:
            self.doubts.append(NOT_AS_SAID)

    def _inflate(self, inflater: "zlib._Decompress", data: bytes | memoryview) -> Iterator[bytes]:
        while not inflater.eof and not self._stopped:
            try:
                part = inflater.decompress(data, AT_ONCE)
            except zlib.error:
                self._stopped = True
                return
            data = inflater.unconsumed_tail
            self._inflated += len(part)
            yield part
            if self._inflated >= MAX_INFLATED_BYTES:
                self.stop(INFLATED)
            if not data and len(part) < AT_ONCE:
                return
