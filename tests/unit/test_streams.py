"""Mutated streams, cut anywhere: the acceptor makes of them what a plain parser of whole streams does."""

import random
from collections import Counter

import pytest

from tests.rig import streams

STREAMS = 2_500
"""Of each test."""


@pytest.mark.parametrize("first", [0, 2_500, *(pytest.param(n, marks=pytest.mark.slow) for n in (5_000, 7_500))])
def test_mutated_streams_give_the_events_of_the_reference(first: int) -> None:
    kinds = Counter(kind for n in range(STREAMS) for kind in streams.compare(first + n))
    assert kinds.keys() == {
        "AssociateRequested",
        "StoreStarted",
        "InstanceFinished",
        "EchoRequested",
        "OperationRefused",
        "Released",
        "Aborted",
        "Violation",
    }


def test_streams_of_one_form_are_many() -> None:
    """Otherwise the short way for C-STORE-RQs that are alike would be compared with nothing."""
    of_one_form = 0
    for seed in range(200):
        data = streams.stream(random.Random(seed))
        stores = [event for event in streams.Reference(data, streams.LIMITS).run()[0] if event[0] == "StoreStarted"]
        of_one_form += len(stores) > len({(event[4], len(event[5])) for event in stores})
    assert of_one_form > 20
