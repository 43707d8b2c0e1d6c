"""Ours accepts what DCMTK, Orthanc or stock pynetdicom accepts; docs/interop.md says what it does not, and why."""

import re

import pytest

from bench.interop import DOCUMENT, Outcome, Peer, associations, judge, receivers
from bench.odd_associations import Odd, odd_associations


@pytest.mark.slow
@pytest.mark.peer("dcmtk")
@pytest.mark.peer("orthanc")
def test_ours_accepts_whatever_another_accepts_but_for_a_reason() -> None:
    with receivers() as peers:
        section = associations(peers)
    assert section.problems == []


def test_the_document_holds_every_odd_request_and_its_reason() -> None:
    rows = re.findall(r"^\| (.+?) \|.*\| (.*?) ?\|$", DOCUMENT.read_text(), re.MULTILINE)
    told = [(name, reason) for name, reason in rows if name not in ("request", "---")]
    assert told[: len(odd_associations())] == [(odd.name, odd.refused) for odd in odd_associations()]


@pytest.mark.parametrize(
    ("refused", "ours", "other", "wrong"),
    [
        ("", {1}, {1}, False),
        ("", {1, 3}, {1}, False),
        ("", {1}, {1, 3}, True),
        ("a reason", {1}, {1, 3}, False),
        ("a reason", {1, 3}, {1, 3}, True),
    ],
)
def test_only_less_than_others_without_a_reason_is_wrong(
    refused: str, ours: set[int], other: set[int], wrong: bool
) -> None:
    def outcome(accepted: set[int]) -> Outcome:
        return Outcome("accepted" if accepted == {1, 3} else "1 of 2 contexts", frozenset(accepted))

    found = [*judge(Odd("odd", b"", refused), {Peer("ours", 1).name: outcome(ours), "Orthanc": outcome(other)})]
    assert bool(found) is wrong
