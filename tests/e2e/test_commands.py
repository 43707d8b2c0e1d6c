"""The operator's commands, beside a running gateway and on a stopped one's journal."""

import asyncio
import json
import sqlite3
import stat
from contextlib import closing, nullcontext
from pathlib import Path

import httpx
import pytest

from bench.rig.processes import gateway, server
from gateway.journal import Journal
from models import SeriesKey
from tests.rig.commands import NOWHERE, client, client_json
from tests.rig.factories import SERIES, UNBOUNDED, make_instance
from tests.rig.rows import wait_for_counts
from tests.rig.sending import dead_letters, new_series, send


def test_status_of_a_running_and_of_a_stopped_gateway(tmp_path: Path) -> None:
    with gateway(tmp_path, NOWHERE, idle_timeout_s=600, drain_timeout_s=0.3) as (_, port):
        send(port, new_series(3))
        status = client_json(tmp_path, "status")
        assert (status["running"], status["ready"]) == (True, True)
        assert (status["open_series"], status["open_instances"], status["waiting_reports"]) == (1, 3, 0)
        assert "open instances" in client(tmp_path, "status")
    status = client_json(tmp_path, "status", exit_code=3)
    assert (status["running"], status["ready"], status["reason"]) == (False, False, "not running")
    assert (status["open_series"], status["waiting_reports"], status["waiting_instances"]) == (0, 1, 3)
    assert "ConnectError" in status["last_problem"]


@pytest.mark.slow
def test_status_of_a_saturated_gateway_says_why(tmp_path: Path) -> None:
    with gateway(tmp_path, NOWHERE, min_free_bytes=2**60, drain_timeout_s=0.3) as (process, _):
        status = client_json(tmp_path, "status", exit_code=3)
        assert (status["running"], status["ready"]) == (True, False)
        assert status["reason"].startswith("less than min_free_bytes=")
        assert process.events("gateway.saturated")


@pytest.mark.slow
def test_drain_of_a_running_gateway_reports_what_is_open_and_it_goes_on(tmp_path: Path) -> None:
    datasets, more = new_series(3), new_series(2)
    with server(tmp_path) as (_, url), gateway(tmp_path, url, idle_timeout_s=600) as (process, port):
        send(port, datasets)
        assert client_json(tmp_path, "drain") == {"reported": 1, "undelivered": 0}
        row = httpx.get(f"{url}/series/{datasets[0].SeriesInstanceUID}", trust_env=False).json()
        assert (row["NumInstances"], row["Verdict"]) == (3, "drained")
        send(port, more)
        client(tmp_path, "drain")
        wait_for_counts(process, url, {more[0].SeriesInstanceUID: 2})


def test_drain_of_a_study_reports_its_series_and_leaves_the_others_open(tmp_path: Path) -> None:
    datasets, others = new_series(3), new_series(2)
    study = str(datasets[0].StudyInstanceUID)
    drain = ["drain", "--study"]
    with server(tmp_path) as (_, url), gateway(tmp_path, url, idle_timeout_s=600) as (_, port):
        send(port, datasets)
        send(port, others)
        assert client_json(tmp_path, *drain, study) == {"reported": 1, "undelivered": 0}
        row = httpx.get(f"{url}/series/{datasets[0].SeriesInstanceUID}", trust_env=False).json()
        assert (row["NumInstances"], row["Verdict"]) == (3, "drained")
        assert client_json(tmp_path, "status")["open_series"] == 1
        said = client(tmp_path, *drain, study, exit_code=1)
        assert f"nothing of study {study} is here" in said
        said = client(tmp_path, *drain, "no\\UID", exit_code=2)
        assert "give the study's Study Instance UID" in said
    said = client(tmp_path, *drain, study, exit_code=1)
    assert "no gateway runs on" in said


@pytest.mark.slow
def test_drain_of_a_killed_gateways_journal_delivers_it(tmp_path: Path) -> None:
    datasets = new_series(4)
    with gateway(tmp_path, NOWHERE, idle_timeout_s=600) as (process, port):
        send(port, datasets)
        process.kill()
    assert client_json(tmp_path, "drain", exit_code=3) == {"reported": 1, "undelivered": 1}
    with server(tmp_path) as (_, url):
        assert client_json(tmp_path, "drain", url=url) == {"reported": 0, "undelivered": 0}
        row = httpx.get(f"{url}/series/{datasets[0].SeriesInstanceUID}", trust_env=False).json()
        assert (row["NumInstances"], row["Verdict"]) == (4, "drained")


@pytest.mark.slow
@pytest.mark.parametrize("beside", [True, pytest.param(False, marks=pytest.mark.slow)], ids=["running", "stopped"])
def test_dead_letters_are_listed_shown_replayed_and_discarded(tmp_path: Path, beside: bool) -> None:
    series = dead_letters(tmp_path, 3)
    with server(tmp_path) as (_, url):
        if beside:
            with gateway(tmp_path, url):
                _handle_dead_letters(tmp_path, url, series)
        else:
            _handle_dead_letters(tmp_path, url, series)
        assert client_json(tmp_path, "drain", url=url)["undelivered"] == 0
        listed = httpx.get(f"{url}/series", trust_env=False).json()["series"]
        assert {row["SeriesInstanceUID"] for row in listed} == {series[0], series[2]}


def _handle_dead_letters(folder: Path, url: str, series: list[str]) -> None:
    listed = client_json(folder, "dead-letters", "list", url=url)
    assert [letter["series_instance_uid"] for letter in listed] == series
    assert listed[0]["answer"] == "HTTP 422 body.PatientID: foreign"
    assert "Test^One" not in client(folder, "dead-letters", "list", url=url)
    first, second, _ = (str(letter["id"]) for letter in listed)
    shown = client_json(folder, "dead-letters", "show", first, url=url)
    assert (shown["report"]["PatientName"], len(shown["report"]["SOPInstanceUIDs"])) == ("Test^One", 2)
    assert client_json(folder, "dead-letters", "replay", first, url=url) == {"replayed": [int(first)]}
    assert client_json(folder, "dead-letters", "discard", second, "--reason", "a test", url=url) == {
        "discarded": [int(second)]
    }
    assert len(client_json(folder, "dead-letters", "replay", "--all", url=url)["replayed"]) == 1
    assert client_json(folder, "dead-letters", "list", url=url) == []
    assert "none" in client(folder, "dead-letters", "list", url=url)
    assert "not dead letters: 77" in client(folder, "dead-letters", "replay", "77", url=url, exit_code=1)


@pytest.mark.slow
def test_wrong_use_is_an_error_that_names_the_cure(tmp_path: Path) -> None:
    assert "no journal there" in client(tmp_path, "status", exit_code=1)
    assert "no journal there" in client(tmp_path, "drain", exit_code=1)
    assert "no journal there" in client(tmp_path, "dead-letters", "replay", "--all", exit_code=1)
    assert list(tmp_path.iterdir()) == []
    with gateway(tmp_path, NOWHERE):
        assert "or give --all" in client(tmp_path, "dead-letters", "replay", exit_code=2)
        assert "--reason" in client(tmp_path, "dead-letters", "discard", "--all", exit_code=2)
        assert "no dead letter 7" in client(tmp_path, "dead-letters", "show", "7", exit_code=1)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("arguments", "cure"),
    [
        (["--tls-cert", "none.pem"], "Give readable PEM files"),
        (["--api-key-file", "none"], "Give a readable file with nothing but the key"),
        (["--journal-path", "none/journal.db"], "Make its folder, writable by this user"),
        (["--scp-host", "192.0.2.1", "--allow-any-peer"], "choose another address or port"),
    ],
)
def test_what_stops_the_start_is_one_line_with_the_cure(tmp_path: Path, arguments: list[str], cure: str) -> None:
    out = client(tmp_path, "--scp-port", "0", *arguments, exit_code=1)
    (error,) = [line for line in out.splitlines() if line.startswith("Error: ")]
    assert cure in error
    assert "Traceback" not in out


@pytest.mark.slow
def test_only_its_own_user_may_command_the_gateway(tmp_path: Path) -> None:
    with gateway(tmp_path, NOWHERE):
        assert stat.S_IMODE((tmp_path / "gateway-journal.db.sock").stat().st_mode) == 0o600
    assert not (tmp_path / "gateway-journal.db.sock").exists()


async def _set_aside(folder: Path) -> None:
    """Leave two dead letters of which reports could not be made: one still cannot."""
    async with Journal.open(folder / "gateway-journal.db", UNBOUNDED) as journal:
        await journal.set_aside(make_instance().key, [f"{SERIES}.1"], 1, "KeyError at collector.py:1")
        await journal.set_aside(SeriesKey("\ud800", SERIES, "Marked^Name"), ["\ud800"], 1, "KeyError at collector.py:1")


@pytest.mark.slow
@pytest.mark.parametrize("beside", [pytest.param(True, marks=pytest.mark.slow), False], ids=["running", "stopped"])
def test_what_was_set_aside_is_shown_and_replayed_as_far_as_it_can_be_made(tmp_path: Path, beside: bool) -> None:
    asyncio.run(_set_aside(tmp_path))
    with server(tmp_path) as (_, url), gateway(tmp_path, url) if beside else nullcontext():
        listed = client_json(tmp_path, "dead-letters", "list", url=url)
        assert [letter["answer"] for letter in listed] == ["KeyError at collector.py:1"] * 2
        shown = client_json(tmp_path, "dead-letters", "show", "2", url=url)
        assert shown["report"]["SOPInstanceUIDs"] == ["\ud800"]
        assert "SOPInstanceUIDs" in client(tmp_path, "dead-letters", "show", "2", url=url)
        out = client(tmp_path, "dead-letters", "replay", "1", "2", "77", "--json", exit_code=1, url=url)
        assert json.JSONDecoder().raw_decode(out)[0] == {"replayed": [1], "unmade": [2]}
        assert "not dead letters: 77" in out
        assert "no report can be made from 2" in out
        (left,) = client_json(tmp_path, "dead-letters", "list", url=url)
        assert left["answer"].startswith("no report can be made from it: StudyInstanceUID")
        client(tmp_path, "drain", url=url)
        (row,) = httpx.get(f"{url}/series", trust_env=False).json()["series"]
        assert (row["SeriesInstanceUID"], row["NumInstances"], row["Verdict"]) == (SERIES, 1, "idle")


def test_a_journal_whose_rows_are_nonsense_is_listed_all_the_same(tmp_path: Path) -> None:
    asyncio.run(_set_aside(tmp_path))
    with closing(sqlite3.connect(tmp_path / "gateway-journal.db")) as connection:
        connection.execute("UPDATE reports SET instances = 9223372036854775807, changed_at = 1e300, report = '[[['")
        connection.execute("UPDATE reports SET series_instance_uid = CAST(x'ffeda080' AS TEXT) WHERE id = 2")
        connection.commit()
    client(tmp_path, "status", exit_code=3)
    assert len(client_json(tmp_path, "dead-letters", "list")) == 2
    client(tmp_path, "dead-letters", "list")
    assert client_json(tmp_path, "dead-letters", "show", "1")["report"] == "[[["


@pytest.mark.slow
def test_a_gateway_is_found_by_any_name_of_its_journal(tmp_path: Path) -> None:
    (tmp_path / "other").mkdir()
    link = tmp_path / "other" / "link.db"
    link.symlink_to(tmp_path / "gateway-journal.db")
    with gateway(tmp_path, NOWHERE):
        assert client_json(tmp_path, "--journal-path", str(link), "status")["running"]
        out = client(tmp_path, "--journal-path", str(link), "--scp-port", "0", exit_code=1)
        assert "used by another gateway" in out
