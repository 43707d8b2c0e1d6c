"""Counts in tags: which series they may count, and from when on they do at a source."""

from dataclasses import replace
from typing import Any

import pytest
from pydicom.dataset import Dataset
from pydicom.uid import (
    UID,
    CTImageStorage,
    EnhancedMRImageStorage,
    ExplicitVRLittleEndian,
    MRImageStorage,
    NuclearMedicineImageStorage,
    PositronEmissionTomographyImageStorage,
)

from common.extras import extras
from common.settings import GatewaySettings, load
from dicom.header import Wanted, read_instance
from gateway.collector import SeriesCollector
from gateway.idle import COUNTS_AFTER, Adaptive, Phase, Source
from gateway.tag_counts import tag_counts
from models import Instance, SeriesReport
from tests.rig.factories import RECEIVED_AT, collector_of, encode, make_dataset, make_instance

PET, MR, CT = PositronEmissionTomographyImageStorage, MRImageStorage, CTImageStorage
SOURCE = Source("TEST", "CT")
DYNAMIC = {"NumberOfSlices": "4", "NumberOfTimeSlices": "3"}
PERFUSION = {"ImagesInAcquisition": "4", "NumberOfTemporalPositions": "3"}
CINE = {"CardiacNumberOfImages": "12"}


def image(sop: int, series: str, sop_class: str, tags: dict[str, str]) -> Instance:
    instance = make_instance(str(sop), series=series)
    attributes = {**instance.attributes, **{keyword: (value,) for keyword, value in tags.items()}}
    return replace(instance, sop_class_uid=UID(sop_class), attributes=attributes)


def adaptive() -> Adaptive:
    return Adaptive(2.0, 60.0)


def sent(
    collector: SeriesCollector, n: int, images: int, sop_class: str, tags: dict[str, str], at: float
) -> SeriesReport:
    """The report of a series of so many images, and nothing else."""
    for sop in range(images):
        collector.observe(image(sop, f"1.{n}", sop_class, tags), at)
    while True:
        deadline = collector.next_deadline()
        assert deadline is not None
        for report in collector.due(deadline):
            return report


@pytest.mark.parametrize(("sop_class", "tags"), [(PET, DYNAMIC), (MR, PERFUSION), (CT, PERFUSION), (MR, CINE)])
def test_a_product_of_tags_is_an_expectation_once_ten_series_of_the_source_have_borne_it_out(
    sop_class: str, tags: dict[str, str]
) -> None:
    collector = collector_of(adaptive())
    told = []
    for n in range(COUNTS_AFTER + 1):
        report = sent(collector, n, 12, sop_class, tags, 100.0 * n)
        told.append((report.Verdict, report.ExpectedInstances, report.ExpectedFrom))
    assert told == [("idle", None, None)] * COUNTS_AFTER + [("expected", 12, "tags")]


@pytest.mark.parametrize(
    ("sop_class", "tags"),
    [
        (MR, DYNAMIC),  # not of PET
        (NuclearMedicineImageStorage, DYNAMIC),
        (PET, PERFUSION | {"ImagesInAcquisition": "5"}),
        (EnhancedMRImageStorage, CINE),
        (PET, CINE),
        ("1.2.3", CINE),
        ("", CINE),
        (MR, CINE | {"NumberOfFrames": "2"}),
        (PET, {"NumberOfSlices": "12"}),
        (PET, {"NumberOfSlices": "12", "NumberOfTimeSlices": "0"}),
        (PET, {"NumberOfSlices": "65535", "NumberOfTimeSlices": "65535"}),
        (MR, {"CardiacNumberOfImages": "many"}),
        (MR, {"NumberOfTemporalPositions": "12"}),
    ],
)
def test_tags_of_other_classes_of_several_frames_or_without_a_number_are_never_one(
    sop_class: str, tags: dict[str, str]
) -> None:
    collector = collector_of(adaptive())
    for n in range(COUNTS_AFTER + 2):
        report = sent(collector, n, 12, sop_class, tags, 100.0 * n)
        assert (report.Verdict, report.ExpectedInstances) == ("idle", None)


def test_an_image_of_another_class_takes_the_count_away() -> None:
    collector = collector_of(adaptive())
    for n in range(COUNTS_AFTER):
        sent(collector, n, 12, MR, CINE, 100.0 * n)
    for sop in range(11):
        collector.observe(image(sop, "1.99", MR, CINE), 5000.0)
    collector.observe(image(11, "1.99", CT, CINE), 5000.0)
    (series,) = collector.arriving(9)
    assert series.Expected is None


def test_one_series_that_had_another_number_ends_it() -> None:
    collector = collector_of(adaptive())
    for n in range(COUNTS_AFTER + 1):
        sent(collector, n, 12, MR, CINE, 100.0 * n)
    sent(collector, 50, 24, MR, CINE, 5000.0)  # two slices, each with all phases
    report = sent(collector, 51, 12, MR, CINE, 6000.0)
    assert (report.Verdict, report.ExpectedInstances) == ("idle", None)
    assert "a tag counts 12 images in a cardiac cycle" in str(report.Basis)


def test_a_late_image_shows_that_the_tags_count_no_series() -> None:
    policy = adaptive()
    collector = collector_of(policy, remember_s=800.0)
    for n in range(COUNTS_AFTER):
        sent(collector, n, 12, PET, DYNAMIC, 100.0 * n)
    assert policy.counts_series(SOURCE, "slices")
    collector.observe(image(99, f"1.{COUNTS_AFTER - 1}", PET, DYNAMIC), 100.0 * COUNTS_AFTER)
    assert not policy.counts_series(SOURCE, "slices")


def test_what_was_learnt_of_one_count_says_nothing_of_another() -> None:
    policy = adaptive()
    collector = collector_of(policy)
    for n in range(COUNTS_AFTER):
        sent(collector, n, 12, MR, CINE | {"ImagesInAcquisition": "6"}, 100.0 * n)
    assert policy.counts_series(SOURCE, "cycle")
    assert not policy.counts_series(SOURCE, "acquisition")


def test_with_several_positions_the_product_counts_and_with_one_the_acquisition() -> None:
    assert tag_counts({k: (v,) for k, v in PERFUSION.items()}, MR) == {"positions": 12, "acquisition": 4}
    one = {"ImagesInAcquisition": ("4",), "NumberOfTemporalPositions": ("1",)}
    assert tag_counts(one, MR) == {"acquisition": 4}
    collector = collector_of(adaptive())
    for n in range(COUNTS_AFTER + 1):
        report = sent(collector, n, 12, MR, PERFUSION, 100.0 * n)
    assert (report.Verdict, report.ExpectedInstances) == ("expected", 12)


def test_what_was_learnt_of_each_count_is_kept() -> None:
    before, after = adaptive(), adaptive()
    for count in ("positions", "acquisition", "slices", "cycle"):
        for _ in range(COUNTS_AFTER):
            before.learn_count(SOURCE, count, right=True)
    before.learn_count(SOURCE, "cycle", right=False)
    (learnt,) = before.news().values()
    after.load(SOURCE, learnt or "")
    known = {count: after.counts_series(SOURCE, count) for count in ("positions", "acquisition", "slices", "cycle")}
    assert known == {"positions": True, "acquisition": True, "slices": True, "cycle": False}


@pytest.mark.parametrize("counts", ['{"later": 7}', "{}", '{"cycle": -5, "slices": 99}'])
def test_counts_of_another_version_stop_nothing(counts: str) -> None:
    policy = adaptive()
    policy.load(SOURCE, f'{{"open": [40, {{"90": 1.0}}], "counts": {counts}}}')
    assert policy.timeout_s(SOURCE, Phase.OPEN, {}) > 0
    assert not policy.counts_series(SOURCE, "cycle")
    policy.learn_count(SOURCE, "cycle", right=True)


def read(wanted: str = "", **elements: Any) -> Instance:
    ds: Dataset = make_dataset("1")
    for keyword, value in elements.items():
        setattr(ds, keyword, value)
    return read_instance(
        encode(ds),
        wanted=Wanted(extras(wanted)),
        transfer_syntax_uid=ExplicitVRLittleEndian,
        calling_ae_title="TEST",
        peer_address="127.0.0.1",
        received_at=RECEIVED_AT,
    )


ELEMENTS: dict[str, Any] = {
    "NumberOfSlices": 47,
    "NumberOfTimeSlices": 30,
    "NumberOfTemporalPositions": "5",
    "CardiacNumberOfImages": "25",
    "ImagesInAcquisition": "94",
}


def test_the_tags_are_read_from_the_header_and_stand_in_no_report() -> None:
    instance = read(**ELEMENTS)
    assert {keyword: instance.text(keyword) for keyword in ELEMENTS} == {k: str(v) for k, v in ELEMENTS.items()}
    collector = collector_of(adaptive())
    collector.observe(instance, 0.0)
    (report,) = collector.drain(1.0)
    assert not ELEMENTS.keys() & report.Attributes.keys()


def test_what_a_site_wants_of_them_stands_in_its_reports() -> None:
    wanted = "NumberOfSlices; ImagesInAcquisition; CardiacNumberOfImages*"
    names = {extra.name for extra in load(GatewaySettings, {"extra_attributes": wanted}).extras}
    collector = collector_of(adaptive(), extras=names)
    collector.observe(read(wanted, **ELEMENTS), 0.0)
    (report,) = collector.drain(1.0)
    told = {keyword: values for keyword, values in report.Attributes.items() if "Number" in keyword or "Acq" in keyword}
    assert {keyword: told[keyword] for keyword in ("NumberOfSlices", "ImagesInAcquisition")} == {
        "NumberOfSlices": ["47"],
        "ImagesInAcquisition": ["94"],
    }
    assert told["CardiacNumberOfImagesOfImages"] == ["25"]
    assert "NumberOfTimeSlices" not in told


def test_a_number_that_came_as_another_kind_is_read_by_that() -> None:
    ds = make_dataset("1")
    ds.add_new(0x00540081, "UL", 47)
    ds.add_new(0x00540101, "IS", "30")
    instance = read_instance(
        encode(ds),
        transfer_syntax_uid=ExplicitVRLittleEndian,
        calling_ae_title="TEST",
        peer_address="127.0.0.1",
        received_at=RECEIVED_AT,
    )
    assert (instance.text("NumberOfSlices"), instance.text("NumberOfTimeSlices")) == ("47", "30")
