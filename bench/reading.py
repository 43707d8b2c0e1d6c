"""What DCMTK, Orthanc, pydicom and ours read of odd data sets, side by side: a table of `python -m bench.interop`.

Each is the real program, and is sent the same bytes. What one of the others reads and ours does not has to have its
reason in the last column.
"""

import json
import socket
import sqlite3
import struct
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import httpx
import pydicom
from pydicom.dataset import Dataset
from pynetdicom import AE, ALL_TRANSFER_SYNTAXES, evt
from pynetdicom.presentation import build_context

from bench.odd_data_sets import NO_IDENTITY, Odd, odd_data_sets
from bench.rig.peers import DCMTK_MISSING, ORTHANC, ORTHANC_MISSING, free_port, orthanc_process, wait_for_port
from bench.rig.processes import Process, gateway, running, server
from bench.rig.receivers import STORESCP
from bench.rig.senders import associate_rq

ANSWER_S = 5.0  # longest wait for an answer
AT_ONCE = 6  # data sets on their way to one reader
ROWS_S = 20.0  # longest wait for the rows of ours, all having been sent
NAMED = 3  # attributes that are lost; of more, how many are read
FRAGMENT = 16_000  # bytes of a data set in one PDU
OURS = "ours"
NESTED = "RequestedProcedureID"
Values = Mapping[str, str]
TEXT = """
## Data sets

*all*: answered 0x0000, and each of {attributes} attributes is read as it was sent; else which are not, or how many
are. *silent*: no answer within {seconds:g} s. Ours says what it met in `Doubtful`. {count} data sets
(`bench/odd_data_sets.py`), the mutations of a good one.

"""


class Reader(NamedTuple):
    """A receiver that runs, and what it has read of a data set."""

    name: str
    port: int
    read: Callable[[Odd], Values]


class Section(NamedTuple):
    """A table of docs/interop.md, with what it says of itself, and what should not be so."""

    text: str
    columns: Sequence[str]
    rows: Sequence[Sequence[str]]
    problems: Sequence[str]


# --- readers ----------------------------------------------------------------------------------------------------


@contextmanager
def readers() -> Iterator[list[Reader]]:
    """Ours and the others."""
    if STORESCP is None or ORTHANC is None:
        raise FileNotFoundError(DCMTK_MISSING if STORESCP is None else ORTHANC_MISSING)
    with tempfile.TemporaryDirectory() as name, ExitStack() as stack:
        folder = Path(name)
        yield [stack.enter_context(each(folder)) for each in (ours, dcmtk, orthanc, pydicoms)]


@contextmanager
def ours(folder: Path) -> Iterator[Reader]:
    """Gateway and server; what the rows say."""
    timeouts = {"idle_policy": "fixed", "idle_timeout_s": 0.2, "min_free_bytes": 0}
    with server(folder) as (_, url), gateway(folder, url, **timeouts) as (_, port):
        until: list[float] = []  # from the first question on

        def read(odd: Odd) -> Values:
            until.append(time.monotonic() + ROWS_S)
            return _row(folder / "series.db", odd, until[0])

        yield Reader(OURS, port, read)


def _row(path: Path, odd: Odd, until: float) -> Values:
    """Of a series, once it is there."""
    tables = "series s JOIN instances i USING (SeriesInstanceUID)"
    query = f"SELECT s.*, i.InstanceNumber, i.Rows FROM {tables} WHERE SOPInstanceUID = ?"  # noqa: S608 - constants
    while True:
        with sqlite3.connect(f"file:{path}?mode=ro", uri=True) as database:
            database.row_factory = sqlite3.Row
            row = database.execute(query, (odd.sop,)).fetchone()
        database.close()
        if row is not None:
            found = {keyword: "\\".join(values) for keyword, values in json.loads(row["Attributes"]).items()}
            own = ("PatientID", "PatientName", "StudyInstanceUID", "InstanceNumber", "Rows")
            return (
                found
                | {keyword: str(row[keyword]) for keyword in own}
                | {"Doubtful": "; ".join(json.loads(row["Doubtful"]))}
            )
        if time.monotonic() > until:
            return {}
        time.sleep(0.05)


@contextmanager
def dcmtk(folder: Path) -> Iterator[Reader]:
    """DCMTK's storescp: what it wrote of what it had parsed."""
    port, images = free_port(), folder / "dcmtk"
    images.mkdir()
    command = [str(STORESCP), "--fork", "+xa", "-od", str(images), "-fe", ".dcm", str(port)]
    with running(Process("storescp", command, folder)):
        wait_for_port(port)
        yield Reader("DCMTK", port, lambda odd: _written(images, odd))


def _written(images: Path, odd: Odd) -> Values:
    for path in images.glob(f"*{odd.sop}*"):
        with warnings.catch_warnings(), suppress(Exception):  # whatever stands in it
            warnings.simplefilter("ignore")
            return _of_dataset(pydicom.dcmread(path, force=True))
    return {}


@contextmanager
def orthanc(folder: Path) -> Iterator[Reader]:
    port, http_port = free_port(), free_port()
    with (
        orthanc_process(folder, port, http_port, {}, {"UnknownSopClassAccepted": True}),
        httpx.Client(base_url=f"http://127.0.0.1:{http_port}", trust_env=False, timeout=30) as http,
    ):
        yield Reader("Orthanc", port, lambda odd: _kept(http, odd))


def _kept(http: httpx.Client, odd: Odd) -> Values:
    query = {"Level": "Instance", "Query": {"SOPInstanceUID": odd.sop}}
    try:
        found = http.post("/tools/find", json=query).json()
        several = [http.get(f"/instances/{one}/simplified-tags").json() for one in found]
    except (httpx.HTTPError, ValueError):  # it was seen to close the connection instead
        return {}
    for tags in several:
        asked = tags.get("RequestAttributesSequence") or [{}]
        return {k: v for k, v in tags.items() if isinstance(v, str)} | {NESTED: str(asked[0].get(NESTED))}
    return {}


@contextmanager
def pydicoms(folder: Path) -> Iterator[Reader]:
    """Stock pynetdicom, and what pydicom decodes of what came."""
    read: dict[str, Values] = {}

    def handle_store(event: evt.Event) -> int:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            read[str(event.request.AffectedSOPInstanceUID)] = _of_dataset(event.dataset)  # type: ignore[union-attr]
        return 0x0000

    ae = AE("STORESCP")
    for sop_class in {odd.sop_class_of_command for odd in odd_data_sets()}:
        ae.add_supported_context(sop_class, ALL_TRANSFER_SYNTAXES)
    port = free_port()
    ae.start_server(("127.0.0.1", port), block=False, evt_handlers=[(evt.EVT_C_STORE, handle_store)])
    try:
        yield Reader("pynetdicom", port, lambda odd: read.get(odd.sop, {}))
    finally:
        ae.shutdown()


def _of_dataset(ds: Dataset) -> Values:
    """What can be decoded of it."""
    found = {}
    for keyword in odd_data_sets()[0].holds:
        with suppress(Exception):  # one that cannot be decoded is not read
            of = ds.RequestAttributesSequence[0] if keyword == NESTED else ds
            found[keyword] = str(of[keyword].value)
    return found


# --- sending ----------------------------------------------------------------------------------------------------


def store(port: int, odd: Odd) -> str:
    """Send it: the status, or what came instead."""
    try:
        with socket.create_connection(("127.0.0.1", port), ANSWER_S) as sock, sock.makefile("rb") as stream:
            sock.sendall(associate_rq([build_context(odd.sop_class_of_command, odd.transfer_syntax)]))
            if (answer := _pdu(stream))[:1] != b"\2":
                return "no association"
            if answer.endswith(b"\x21\0\0"):
                return "no context"
            sock.sendall(b"".join(_request(odd)))
            answer = _pdu(stream)
            sock.sendall(struct.pack(">BxLL", 5, 4, 0))
            _pdu(stream)
    except TimeoutError:
        return "silent"
    except ConnectionError:
        return "closed"
    return _status(answer)


def _pdu(stream: Any) -> bytes:
    head = stream.read(6)
    return bytes(head + stream.read(int.from_bytes(head[2:], "big")))


def _request(odd: Odd) -> Iterator[bytes]:
    elements = ((0x0002, odd.sop_class_of_command.encode()), (0x0100, b"\1\0"), (0x0110, b"\1\0"), (0x0700, b"\0\0"))
    elements += ((0x0800, b"\1\0"), (0x1000, odd.sop.encode()))  # type: ignore[assignment]
    padded = [(number, value + b"\0" * (len(value) % 2)) for number, value in elements]
    command = b"".join(struct.pack("<HHL", 0, number, len(value)) + value for number, value in padded)
    yield _p_data(3, struct.pack("<HHLL", 0, 0, 4, len(command)) + command)
    for at in range(0, len(odd.data), FRAGMENT):
        yield _p_data(2 if at + FRAGMENT >= len(odd.data) else 0, odd.data[at : at + FRAGMENT])


def _p_data(control: int, fragment: bytes) -> bytes:
    return struct.pack(">BxLLBB", 4, len(fragment) + 6, len(fragment) + 2, 1, control) + fragment


def _status(answer: bytes) -> str:
    if answer[:1] != b"\4":
        return "aborted" if answer[:1] == b"\7" else "closed"
    at = answer.index(struct.pack("<HHL", 0, 0x0900, 2)) + 8
    return f"0x{int.from_bytes(answer[at : at + 2], 'little'):04X}"


# --- the table --------------------------------------------------------------------------------------------------


def data_sets() -> Section:
    """Every odd data set to every reader."""
    with readers() as found:
        return _read_by(found)


def sent_to(found: Sequence[Reader], odd_ones: Sequence[Odd]) -> list[tuple[str, ...]]:
    """Return of each data set what each reader answered; no reader waits for the silence of another."""
    with ExitStack() as stack:
        pools = [stack.enter_context(ThreadPoolExecutor(AT_ONCE)) for _ in found]
        told = [pool.map(partial(store, reader.port), odd_ones) for pool, reader in zip(pools, found, strict=True)]
        return list(zip(*told, strict=True))


def _read_by(found: Sequence[Reader]) -> Section:
    odd_ones = odd_data_sets()
    rows, problems = [], []
    for odd, statuses in zip(odd_ones, sent_to(found, odd_ones), strict=True):
        read = [reader.read(odd) if status == "0x0000" else {} for reader, status in zip(found, statuses, strict=True)]
        right = [{k for k, v in odd.holds.items() if values.get(k) == v} for values in read]
        told = [_told(odd, *each) for each in zip(statuses, right, strict=True)]
        is_filed = "StudyInstanceUID" in set().union(*right)
        refused = odd.refused or ("" if is_filed else NO_IDENTITY)
        doubtful = "; ".join(filter(None, (read[0].get("Doubtful", ""), refused)))
        rows.append([odd.name, *told, doubtful])
        if (lost := set().union(*right[1:]) - right[0]) and not refused:
            problems.append(f"{odd.name}: ours {told[0]}, others read {', '.join(sorted(lost))}")
        if not (refused or doubtful or odd.mutated) and right[0] != set(odd.holds):
            problems.append(f"{odd.name}: ours {told[0]}, and says nothing")
    text = TEXT.format(seconds=ANSWER_S, count=len(odd_ones), attributes=len(odd_ones[0].holds))
    columns = ["data set", *(reader.name for reader in found), "ours says; why ours refuses"]
    return Section(text, columns, rows, problems)


def _told(odd: Odd, status: str, right: set[str]) -> str:
    if status != "0x0000":
        return status
    if len(right) == len(odd.holds):
        return "all"
    lost = sorted(odd.holds.keys() - right)
    return f"not {', '.join(lost)}" if len(lost) <= NAMED else f"{len(right)} of {len(odd.holds)}"
