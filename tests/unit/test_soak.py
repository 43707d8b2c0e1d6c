"""What `make soak` plans, and that it sees what is lost or doubled."""

import sqlite3
from argparse import Namespace
from contextlib import closing
from datetime import UTC, datetime
from pathlib import Path

import pytest

from bench.play import Archive
from bench.soak import LATE, Judgement, Plan, as_report, judge

TAKEN = {"1": {"1.1", "1.2"}, "2": {"2.1"}}
GOOD = {"1": 2, "2": 1}


@pytest.fixture
def plan() -> Plan:
    return Plan(Namespace(series=100, sent=40, sources=30, seed=1), Archive())


def judged(folder: Path, *rows: str, told: dict[str, int] = GOOD) -> Judgement:
    """Judge TAKEN by a database with what these statements insert."""
    with closing(sqlite3.connect(folder / "series.db")) as database:
        for table in ("series", "purged"):
            database.execute(f'CREATE TABLE {table} ("SeriesInstanceUID" TEXT, "NumInstances" INTEGER)')
        database.execute('CREATE TABLE instances ("SeriesInstanceUID" TEXT, "SOPInstanceUID" TEXT)')
        for row in rows:
            database.execute(f"INSERT INTO {row}")
        database.commit()
    return judge(TAKEN, f"sqlite+aiosqlite:///{folder}/series.db", told)


ONE, TWO = "series VALUES ('1', 2)", "purged VALUES ('2', 1)"
IMAGES = "instances VALUES ('1', '1.1'), ('1', '1.2')"


@pytest.mark.parametrize(
    ("rows", "lost", "doubled"),
    [
        ([ONE, IMAGES, TWO], 0, 0),
        ([ONE, IMAGES], 1, 0),
        ([ONE, IMAGES, "purged VALUES ('2', 2)"], 0, 1),
        (["series VALUES ('1', 1)", "instances VALUES ('1', '1.1')", TWO], 1, 0),
        (["series VALUES ('1', 3)", IMAGES, TWO], 0, 1),
        ([ONE, "instances VALUES ('1', '1.1'), ('1', '9')", TWO], 1, 1),
        ([ONE, IMAGES, TWO, "series VALUES ('3', 1)"], 0, 1),
        ([ONE, IMAGES, TWO, "purged VALUES ('1', 2)"], 0, 1),
    ],
)
def test_what_is_not_as_it_was_taken_is_lost_or_doubled(
    rows: list[str], lost: int, doubled: int, tmp_path: Path
) -> None:
    found = judged(tmp_path, *rows)
    assert (found.lost, found.doubled, found.images, found.problems) == (lost, doubled, 3, [])


def test_a_reader_that_was_told_less_is_a_problem(tmp_path: Path) -> None:
    assert len(judged(tmp_path, ONE, IMAGES, TWO, told={"1": 1}).problems) == 2


def test_as_many_go_over_dicom_as_are_asked_for_and_those_of_the_pacs(plan: Plan) -> None:
    parcels = [plan.series(number)[0] for number in range(100)]
    of_others = [parcel for parcel in parcels if parcel.ae_title != "ARCHIVE"]
    assert all(parcel.over_dicom for parcel in parcels if parcel.ae_title == "ARCHIVE")
    assert sum(parcel.over_dicom for parcel in of_others) in range(35, 41)


def test_what_comes_late_completes_its_series(plan: Plan) -> None:
    today, late = next(both for both in map(plan.series, range(0, 100 * LATE, LATE)) if both[1])
    assert late is not None
    numbers = [ds.InstanceNumber for ds in (*today.images, *late.images)]
    assert numbers == list(range(1, len(numbers) + 1))
    assert len({ds.SeriesInstanceUID for ds in (*today.images, *late.images)}) == 1


def test_a_report_names_the_images_that_are_sent(plan: Plan) -> None:
    parcel, _ = plan.series(2)
    report = as_report(parcel, datetime(2026, 1, 1, tzinfo=UTC))
    assert report.SOPInstanceUIDs == [ds.SOPInstanceUID for ds in parcel.images]
    assert report.NumInstances == len(parcel.images)
