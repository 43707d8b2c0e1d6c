"""A large report in pieces: each one is small enough for proxies, and holds up no other series at the server.

Every piece but the last is a part, a report without a verdict: the server takes the union, so that pieces may come
again, or be cut off by a restart, and change nothing.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

MAX_INSTANCES = 5_000  # of one piece: the server's one writer takes less than a second for as many
MAX_BYTES = 700_000  # of one piece: nginx takes bodies of 1 MB by default
ENOUGH = 100  # instances that a piece has at least, whatever the rest of a report weighs
SHORTEST = 4  # characters that a UID takes there
OF_A_PART = (  # each one may be what corrects a record: so all tell whose it is, and what of
    *("SeriesInstanceUID", "StudyInstanceUID", "PatientID", "PatientName", "Attributes", "Undecoded", "Doubtful"),
    *("Revision", "GatewayID", "Source", "CalledAETitle", "FirstReceivedAt", "LastReceivedAt"),
)


def may_be_large(report: str) -> bool:
    """Whether a report's JSON is long enough for more than one piece."""
    return len(report) > SHORTEST * MAX_INSTANCES


def pieces(report: str) -> list[str]:
    """A report's JSON as one or several, which are posted in this order. The last one says all but the other UIDs."""
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
    """Where each piece begins and ends."""
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
