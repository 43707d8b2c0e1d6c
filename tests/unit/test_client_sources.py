"""`python client.py sources`, on real journals."""

import json
import sqlite3
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import pytest

from common.settings import GatewaySettings
from gateway.cli.sources import as_text, listed
from gateway.idle import Adaptive, Phase, Source
from gateway.journal import Journal
from gateway.journal_file import SCHEMAS
from gateway.journal_reader import JournalUnusable
from tests.rig.factories import RECEIVED_AT, UNBOUNDED, make_instance, make_report


def learnt(*sources: Source, series: int = 1) -> dict[tuple[str, str, str], str | None]:
    policy = Adaptive(2.0, 60.0)
    for source in sources:
        for _ in range(series):
            policy.learn(source, {Phase.RELEASED: 0.0})
    return {(*source,): text for source, text in policy.news().items()}


def worker(path: Path) -> GatewaySettings:
    return GatewaySettings(journal_path=path)


async def test_what_workers_have_seen_and_learnt_stands_together(tmp_path: Path) -> None:
    paths = [tmp_path / "a.db", tmp_path / "b.db"]
    report = make_report("1", "2").model_copy(update={"Source": "TEST CT"})
    for n, path in enumerate(paths):
        async with Journal.open(path, UNBOUNDED) as journal:
            await journal.file_reports([report], learnt(Source("TEST", "CT"), series=n + 1))
            await journal.keep([make_instance("3", series="1.2")])
    (row,) = listed([worker(path) for path in paths])
    assert (row["source"], row["series"], row["images"], row["open_images"]) == ("TEST CT", 2, 4, 2)
    assert row["last_image_at"] == RECEIVED_AT.timestamp()
    assert (row["learnt_from"], row["wait_s"].keys()) == (2, {"released"})
    assert as_text(row)["wait_s"].startswith("released ")


async def test_a_source_has_a_station_and_is_not_told_twice(tmp_path: Path) -> None:
    path = tmp_path / "journal.db"
    instance = make_instance("1")
    instance = replace(instance, attributes={**instance.attributes, "StationName": (" ROOM1 ",)})
    async with Journal.open(path, UNBOUNDED) as journal:
        await journal.keep([instance])
        await journal.file_reports([], learnt(Source("TEST", "CT", "ROOM1"), Source("OLD", "MR")))
    rows = listed([worker(path)])
    assert [(row["source"], row["open_images"], row["learnt_from"]) for row in rows] == [
        ("OLD MR", 0, 1),
        ("TEST CT ROOM1", 1, 1),
    ]
    assert rows[0]["last_image_at"] is None


async def test_rows_that_hold_nonsense_cost_no_other(tmp_path: Path) -> None:
    path = tmp_path / "journal.db"
    async with Journal.open(path, UNBOUNDED) as journal:
        await journal.keep([make_instance("1")])
        await journal.file_reports([make_report("1", series="1.2").model_copy(update={"Source": "GOOD CT"})])
    with closing(sqlite3.connect(path)) as connection:
        connection.execute("INSERT INTO sources VALUES ('BAD', 'soon', 'many', x'00')")
        connection.execute("INSERT INTO learnt (calling_ae_title, modality, content) VALUES ('BAD', 'CT', '[')")
        connection.execute("UPDATE open_series SET content = 'no json'")
        connection.commit()
    assert {row["source"]: row["images"] for row in listed([worker(path)])} == {"BAD": 0, "GOOD CT": 1, "TEST": 0}


@pytest.mark.parametrize("version", range(1, len(SCHEMAS)))
def test_the_journal_of_an_earlier_version_says_what_is_open(tmp_path: Path, version: int) -> None:
    path = tmp_path / "journal.db"
    with closing(sqlite3.connect(path)) as connection:
        connection.executescript(f"{''.join(SCHEMAS[:version])} PRAGMA user_version = {version};")
        connection.execute(
            "INSERT INTO open_series (id, study_instance_uid, series_instance_uid, sop_class_uid, transfer_syntax_uid, "
            "calling_ae_title, peer_address, content) VALUES (1, '1.1', '1.2', '1', '1', 'CT1', '::1', ?)",
            (json.dumps([{"Modality": ["CT"]}, {}]),),
        )
        connection.execute("INSERT INTO instances (series_id, sop_instance_uid, received_at) VALUES (1, '1.3', 5)")
        connection.commit()
    (row,) = listed([worker(path)])
    assert (row["source"], row["last_image_at"], row["open_images"]) == ("CT1 CT", 5.0, 1)


def test_without_a_journal_the_setting_is_named(tmp_path: Path) -> None:
    with pytest.raises(JournalUnusable, match="GATEWAY_JOURNAL_PATH"):
        listed([worker(tmp_path / "none.db")])
