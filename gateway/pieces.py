"""Split a large report into pieces, each small enough for proxies, and quick enough not to block the server.

Every piece except the last is a part: a report without a verdict. The server takes the union of all, so pieces may be
sent again, or be interrupted by a restart, without any effect.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

MAX_INSTANCES = 5_000  # of one piece; the server's single writer takes less than a second for that many
MAX_BYTES = 700_000  # of one piece; nginx accepts bodies up to 1 MB by default
ENOUGH = 100  # least number of instances in a piece, however large the rest of the report is
SHORTEST = 4  # least number of characters that a UID takes in JSON
OF_A_PART = (  # fields of every piece, since any of them may be the one that corrects a record
    *("SeriesInstanceUID", "StudyInstanceUID", "PatientID", "PatientName", "Attributes", "Undecoded", "Doubtful"),
    *("Revision", "GatewayID", "Source", "CalledAETitle", "FirstReceivedAt", "LastReceivedAt"),
)


def may_be_large(report: str) -> bool:
    """Tell if a report's JSON is long enough for more than one piece."""
    return len(report) > SHORTEST * MAX_INSTANCES


def pieces(report: str) -> list[str]:
    """Split a report's JSON into pieces, to be posted in this order. The last one has everything except other UIDs."""
    whole = json.loads(report)
    uids, columns = whole.get("SOPInstanceUIDs") or [], whole.get("InstanceAttributes") or {}
    of_all = {name: values for name, values in columns.items() if len(values) == 1}
    of_each = {name: values for name, values in columns.items() if name not in of_all}
    base = {name: value for name, value in whole.items() if name not in ("SOPInstanceUIDs", "InstanceAttributes")}
    room = MAX_BYTES - _size(base | {"InstanceAttributes": of_all})
    spans = list(_spans(uids, of_each, room))
    if len(spans) < 2:
        return [report]
    part = {name: base[name] for name in OF_A_PART if name in base}
    made = []
    for first, end in spans:
        told = base if end == len(uids) else part
        own = {name: values[first:end] for name, values in of_each.items()}
        some = {"NumInstances": end - first, "SOPInstanceUIDs": uids[first:end], "InstanceAttributes": of_all | own}
        made.append(_json(told | some))
    return made


def _spans(uids: Sequence[str], of_each: Mapping[str, Sequence[Any]], room: int) -> Iterator[tuple[int, int]]:
    """Yield where each piece begins and ends in the list of UIDs."""
    first = held = 0
    for at, uid in enumerate(uids):
        size = _size([uid, *(values[at] for values in of_each.values())]) + 2
        if at - first >= MAX_INSTANCES or (held + size > room and at - first >= ENOUGH):
            yield first, at
            first, held = at, 0
        held += size
    yield first, len(uids)


def _size(value: Any) -> int:
    return len(_json(value).encode())


def _json(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"))
