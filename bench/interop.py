"""`python -m bench.interop`: what DCMTK, Orthanc, stock pynetdicom and ours make of odd input, side by side.

Each is the real program, on a port of its own. docs/interop.md is written by it, a table a kind of input: what one of
the others accepts and ours does not has to have its reason there, else the exit code is 1.
"""

import re
import socket
import struct
import subprocess
import sys
import tempfile
import textwrap
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from typing import NamedTuple

import pynetdicom

from bench.odd_associations import ALLOWED, Odd, odd_associations
from bench.reading import Section, data_sets
from bench.rig.peers import DCMTK_MISSING, ORTHANC, ORTHANC_MISSING, free_port, orthanc_process, wait_for_port
from bench.rig.processes import ROOT, Process, gateway, running, server
from bench.rig.receivers import EMPTY_HANDLER, STORESCP

DOCUMENT = ROOT / "docs" / "interop.md"
ANSWER_S = 5.0  # longest wait for an answer
AT_ONCE = 8  # requests to one peer that wait for theirs
WIDTH = 100  # characters of a line of prose
OURS = "ours"
RELEASE = struct.pack(">BxLL", 5, 4, 0)

INTRODUCTION = """# Odd input: ours beside others

Written by `python -m bench.interop`, which starts each of them as it comes, and exits with 1 where one of the others
accepts or reads what ours does not and no reason stands in the last column. {versions}.
"""
OF_ASSOCIATIONS = """
## Association requests

*accepted*: every presentation context; else how many of them. *rejected*: by A-ASSOCIATE-RJ, with result, source and
reason (PS3.8 table 9-21). *closed*: without a word; *silent*: no answer within {seconds:g} s. Ours is started with
`GATEWAY_ALLOWED_PEERS="{allowed}"`, and asked from 127.0.0.1 but where something is not allowed. Mutations are of one
good request, its PDU length mended; those that ours aborts have lengths that do not fit. {count} requests
(`bench/odd_associations.py`).

"""


class Peer(NamedTuple):
    """A receiver that runs."""

    name: str
    port: int


class Outcome(NamedTuple):
    """What a peer made of an association request."""

    told: str
    contexts: frozenset[int] = frozenset()
    """IDs that it accepted."""


# --- receivers --------------------------------------------------------------------------------------------------


@contextmanager
def receivers() -> Iterator[list[Peer]]:
    """Ours and the others, each as it comes."""
    if STORESCP is None or ORTHANC is None:
        raise FileNotFoundError(DCMTK_MISSING if STORESCP is None else ORTHANC_MISSING)
    stock = [sys.executable, "-c", EMPTY_HANDLER]
    with tempfile.TemporaryDirectory() as name, ExitStack() as stack:
        folder = Path(name)
        _, url = stack.enter_context(server(folder))
        limits = {"associate_timeout_s": 2, "min_free_bytes": 0}
        _, ours = stack.enter_context(gateway(folder, url, allowed_peers=ALLOWED, **limits))
        port = free_port()
        stack.enter_context(orthanc_process(folder, port, free_port(), {}))
        yield [
            Peer(OURS, ours),
            Peer("DCMTK storescp", stack.enter_context(command(folder, [STORESCP, "--fork", "--ignore", "+xa"]))),
            Peer("Orthanc", port),
            Peer("pynetdicom", stack.enter_context(command(folder, stock))),
        ]


@contextmanager
def command(folder: Path, words: list[str]) -> Iterator[int]:
    """A receiver that is one command; its port."""
    port = free_port()
    with running(Process(words[0], [*words, str(port)], folder)):
        wait_for_port(port)
        yield port


def versions() -> str:
    """Return the names and versions of what is compared."""
    told = {"DCMTK": [str(STORESCP), "--version"], "Orthanc": [str(ORTHANC), "--version"]}
    found = []
    for name, words in told.items():
        said = subprocess.run(words, capture_output=True, text=True, check=False).stdout
        found.append(f"{name} {number[0]}" if (number := re.search(r"\d+\.\d+\.\d+", said)) else name)
    return ", ".join([*found, f"pynetdicom {pynetdicom.__version__}"])


# --- association requests ---------------------------------------------------------------------------------------


def associations() -> Section:
    """Every odd association request to every peer."""
    asked = odd_associations()
    rows: list[list[str]] = []
    problems: list[str] = []
    with receivers() as peers:
        for odd, outcomes in zip(asked, ask_all(peers, asked), strict=True):
            rows.append([odd.name, *(outcome.told for outcome in outcomes.values()), odd.refused])
            problems += judge(odd, outcomes)
    text = OF_ASSOCIATIONS.format(seconds=ANSWER_S, allowed=ALLOWED, count=len(asked))
    return Section(text, ["request", *(peer.name for peer in peers), "why ours refuses"], rows, problems)


def judge(odd: Odd, outcomes: dict[str, Outcome]) -> Iterator[str]:
    """Yield what is wrong with ours: less than others accept, without a reason, or a reason for nothing."""
    ours = outcomes[OURS]
    more = [name for name, other in outcomes.items() if other.contexts - ours.contexts]
    if more and not odd.refused:
        yield f"{odd.name}: {ours.told}, and accepted by {', '.join(more)}"
    if odd.refused and ours.told == "accepted":
        yield f"{odd.name}: accepted, though there is a reason why not"


def ask_all(peers: Sequence[Peer], asked: Sequence[Odd]) -> Iterator[dict[str, Outcome]]:
    """Yield what each peer makes of each request; no peer waits for the silence of another."""
    with ExitStack() as stack:
        pools = [stack.enter_context(ThreadPoolExecutor(AT_ONCE)) for _ in peers]
        told = [pool.map(partial(ask, peer), asked) for pool, peer in zip(pools, peers, strict=True)]
        for outcomes in zip(*told, strict=True):
            yield {peer.name: outcome for peer, outcome in zip(peers, outcomes, strict=True)}


def ask(peer: Peer, odd: Odd) -> Outcome:
    """Send the request, read the answer, release what was accepted."""
    try:
        with socket.create_connection(("127.0.0.1", peer.port), ANSWER_S, (odd.source, 0)) as sock:
            sock.sendall(odd.request)
            with sock.makefile("rb") as stream:
                head = stream.read(6)
                body = stream.read(int.from_bytes(head[2:], "big"))
                if head[:1] == b"\2":
                    sock.sendall(RELEASE)
                    stream.read(10)
    except TimeoutError:
        return Outcome("silent")
    except ConnectionError:
        return Outcome("closed")
    return outcome_of(head[:1], body)


def outcome_of(kind: bytes, body: bytes) -> Outcome:
    """Say in words what the first byte and the rest of an answer mean."""
    match kind:
        case b"\2":
            results = dict(results_of(body))
            accepted = frozenset(number for number, result in results.items() if result == 0)
            whole = accepted and len(accepted) == len(results)
            return Outcome("accepted" if whole else f"{len(accepted)} of {len(results)} contexts", accepted)
        case b"\3":
            return Outcome(f"rejected {', '.join(map(str, body[1:4]))}")
        case b"\7":
            return Outcome("aborted")
    return Outcome("closed")


def results_of(body: bytes) -> Iterator[tuple[int, int]]:
    """Context IDs and results of an A-ASSOCIATE-AC (PS3.8 §9.3.3)."""
    at = 68
    while at + 4 <= len(body):
        kind, length = struct.unpack_from(">BxH", body, at)
        if kind == 0x21:
            yield body[at + 4], body[at + 6]
        at += 4 + length


# --- the document -----------------------------------------------------------------------------------------------

SECTIONS: tuple[Callable[[], Section], ...] = (associations, data_sets)
"""Each makes one table of what ours and the others do."""


def markdown(section: Section) -> str:
    lines = [section.columns, ["---"] * len(section.columns), *section.rows]
    table = "".join(f"| {' | '.join(cell.replace('|', '/') for cell in line)} |\n" for line in lines)
    return f"{wrapped(section.text)}\n\n{table}"


def wrapped(text: str) -> str:
    """Return Markdown paragraphs in lines of at most WIDTH."""
    fill = partial(textwrap.fill, width=WIDTH, break_long_words=False, break_on_hyphens=False)
    return "\n\n".join(map(fill, text.strip().split("\n\n")))


def main() -> int:
    """Write the document; exit code 0 if nothing is wrong."""
    made = [section() for section in SECTIONS]
    text = "\n".join([wrapped(INTRODUCTION.format(versions=versions())) + "\n", *map(markdown, made)])
    DOCUMENT.write_text(text)
    problems = [problem for section in made for problem in section.problems]
    for problem in problems:
        sys.stdout.write(f"wrong: {problem}\n")
    rows = " ".join(str(len(section.rows)) for section in made)
    sys.stdout.write(f"interop: tried={rows} wrong={len(problems)}\n")
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())
