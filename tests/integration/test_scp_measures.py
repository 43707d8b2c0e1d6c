"""What the SCP counts, measures and says of associations and images."""

from collections.abc import Mapping
from typing import Any

from prometheus_client import Counter, Histogram
from structlog.testing import capture_logs

from bench.rig.senders import associate_rq
from common import metrics
from common.settings import GatewaySettings
from dicom.statuses import OUT_OF_RESOURCES, SUCCESS
from models import Association, Instance
from scp import serve_scp
from tests.rig.associations import Kept, Raw, associated, settings, unsaturated
from tests.rig.factories import SERIES, make_dataset
from tests.rig.pdus import RELEASE_RQ, p_data, pdv

COUNTED: Mapping[str, Counter] = {
    "associations": metrics.associations,
    "aborted": metrics.associations_aborted,
    "images": metrics.instances_received,
    "bytes": metrics.received_bytes,
}


def counts() -> dict[str, float]:
    refused = {kind: metrics.total(metrics.associations_refused.labels(kind)) for kind in ("protocol", "saturated")}
    answered = metrics.store_responses
    answers = {status: metrics.total(answered.labels(status)) for status in ("0x0000", "0xA700", "0xC000")}
    return {name: metrics.total(counter) for name, counter in COUNTED.items()} | refused | answers


def observations(histogram: Histogram) -> tuple[float, float]:
    """Return how many there are, and their sum."""
    (family,) = histogram.collect()
    count, total = (
        next(sample.value for sample in family.samples if sample.name.endswith(end)) for end in ("_count", "_sum")
    )
    return count, total


async def test_images_and_their_answers_are_counted_and_measured() -> None:
    full, kept = False, Kept()
    before, measured = counts(), observations(metrics.store_seconds)
    async with serve_scp(settings(), kept, lambda: "full" if full else None) as port, associated(port) as scu:
        for sop in ("1", "2"):
            assert (await scu.store(make_dataset(sop))).Status == SUCCESS
        nameless = make_dataset("3")
        del nameless.SeriesInstanceUID
        await scu.store(nameless)
        full = True
        assert (await scu.store(make_dataset("4"))).Status == OUT_OF_RESOURCES
    after = counts()
    grown = {name: after[name] - before[name] for name in after if name != "bytes"}
    assert grown == {"associations": 1, "aborted": 0, "images": 4, "protocol": 0, "saturated": 0} | {
        "0x0000": 2,
        "0xA700": 1,
        "0xC000": 1,
    }
    count, seconds = observations(metrics.store_seconds)
    assert count == measured[0] + 4
    assert 0 <= seconds - measured[1] < 60  # the loop's clock shows far more, on any machine that runs for a minute
    assert after["bytes"] - before["bytes"] > sum(instance.length for instance in kept.instances) > 0


async def test_an_association_that_a_full_gateway_rejects_is_counted_as_that() -> None:
    before = counts()
    async with serve_scp(settings(), Kept(), lambda: "disk full") as port, Raw(port) as raw:
        await raw.say(associate_rq())
        assert (await raw.pdu())[0] == 0x03
    assert counts() == before | {"saturated": before["saturated"] + 1}


async def test_open_associations_are_counted_while_they_are_open() -> None:
    async with serve_scp(settings(), Kept(), unsaturated) as port, associated(port), associated(port):
        assert metrics.total(metrics.associations_open) == 2
    assert metrics.total(metrics.associations_open) == 0


def ended(logs: list[Any]) -> list[tuple[int, str, int]]:
    events = [entry for entry in logs if entry["event"] == "association.ended"]
    return [(entry["association"], entry["calling_ae_title"], entry["instances"]) for entry in events]


async def test_an_association_says_how_it_ended_and_how_many_of_its_images_were_kept() -> None:
    seen: list[Association] = []
    statuses = iter([SUCCESS, OUT_OF_RESOURCES, SUCCESS])

    async def keep(_: Instance) -> int:
        return next(statuses)

    with capture_logs() as logs:
        async with serve_scp(settings(), keep, unsaturated, seen.append) as port:
            async with associated(port) as scu:
                for sop in "123":
                    await scu.store(make_dataset(sop))
            async with Raw(port) as raw:
                await raw.say(associate_rq())
                await raw.pdu()
            async with Raw(port) as raw:
                await raw.say(associate_rq())
                await raw.pdu()
                await raw.say(RELEASE_RQ)
                assert (await raw.pdu())[0] == 0x06
    assert ended(logs) == [(1, "SCU", 2), (2, seen[-1].calling_ae_title, 0), (3, seen[-1].calling_ae_title, 0)]
    by_number = {association.number: association for association in seen}
    assert [by_number[n].aborted for n in (1, 2, 3)] == [False, True, False]
    for association in by_number.values():
        assert association.released_at is not None
        assert association.opened_at <= association.released_at


async def test_when_an_image_began_to_come_is_known() -> None:
    came: list[tuple[float, float | None]] = []

    async def keep(instance: Instance) -> int:
        assert instance.association is not None
        came.append((instance.association.opened_at, instance.association.began_at))
        return SUCCESS

    async with serve_scp(settings(), keep, unsaturated) as port, associated(port) as scu:
        for sop in "12":
            await scu.store(make_dataset(sop, series=SERIES))
    (opened, first), (_, second) = came
    assert first is not None
    assert second is not None
    assert opened <= first <= second


async def test_what_breaks_the_protocol_or_outlasts_the_drain_is_counted_as_what_it_is() -> None:
    before = counts()
    with capture_logs() as logs:
        async with serve_scp(GatewaySettings(scp_port=0, drain_timeout_s=0.05), Kept(), unsaturated) as port:
            async with Raw(port) as raw:
                await raw.say(associate_rq())
                await raw.pdu()
                await raw.say(p_data(pdv(99, 3, b"no command")))
                assert (await raw.pdu())[0] == 0x07
            raw = await Raw(port).__aenter__()
            await raw.say(associate_rq())
            await raw.pdu()
    assert (await raw.pdu())[0] == 0x07
    await raw.__aexit__()
    after = counts()
    assert (after["protocol"] - before["protocol"], after["aborted"] - before["aborted"]) == (1, 1)
    assert after["associations"] - before["associations"] == 2
    events = [entry["event"] for entry in logs]
    assert events.count("association.violated") == 1
    assert events.count("association.aborted") == 1
    assert events.count("association.ended") == 2
