"""Ours takes what DCMTK, Orthanc or stock pynetdicom takes; docs/interop.md says what it does not, and why."""

import re
from collections.abc import Callable

import pytest

from bench.interop import DOCUMENT, OURS, SECTIONS, Outcome, judge
from bench.odd_associations import Odd, odd_associations
from bench.odd_data_sets import odd_data_sets
from bench.reading import Section


@pytest.mark.slow
@pytest.mark.peer("dcmtk")
@pytest.mark.peer("orthanc")
@pytest.mark.parametrize("section", SECTIONS)
def test_ours_takes_whatever_another_takes_but_for_a_reason(section: Callable[[], Section]) -> None:
    assert section().problems == []


def test_the_document_holds_everything_odd_and_the_reasons() -> None:
    rows = re.findall(r"^\| (.+?) \|.*\| (.*?) ?\|$", DOCUMENT.read_text(), re.MULTILINE)
    told = [(name, reason) for name, reason in rows if name not in ("request", "data set", "---")]
    requests = len(odd_associations())
    assert told[:requests] == [(odd.name, odd.refused) for odd in odd_associations()]
    assert [name for name, _ in told[requests:]] == [odd.name for odd in odd_data_sets()]


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

    found = [*judge(Odd("odd", b"", refused), {OURS: outcome(ours), "Orthanc": outcome(other)})]
    assert bool(found) is wrong
