"""`server.py export` and /series.csv, as a user runs them against a real server."""

import csv
import json
import re
import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing
from datetime import UTC, datetime, timedelta
from pathlib import Path

import httpx
import pytest

from bench.rig import warm
from bench.rig.processes import ROOT, make_key, server, without_settings
from tests.rig.factories import STUDY, make_report
from tests.rig.papers import JOBS, filled, line, shell
from tests.rig.terminals import on_a_terminal

EXPORT = [sys.executable, str(ROOT / "server.py"), "export"]


@pytest.fixture
def url(tmp_path: Path) -> Iterator[str]:
    """A server with three series: changed now, yesterday at noon, and long ago."""
    with server(tmp_path) as (_, url):
        for n in range(3):
            report = make_report("1", series=f"{STUDY}.{n}").model_dump(mode="json") | {"PatientName": "=1+1"}
            httpx.post(f"{url}/series", json=report, trust_env=False).raise_for_status()
        noon = datetime.now().astimezone().replace(hour=12) - timedelta(days=1)
        with closing(sqlite3.connect(tmp_path / "series.db", timeout=60)) as connection:
            for n, at in ((1, noon.astimezone(UTC)), (2, datetime(2020, 1, 1, tzinfo=UTC))):
                stored = f"{at:%Y-%m-%d %H:%M:%S.000000}"
                connection.execute(
                    "UPDATE series SET UpdatedAt = ? WHERE SeriesInstanceUID = ?", [stored, f"{STUDY}.{n}"]
                )
            connection.commit()
        yield url


def uids(text: str) -> list[str]:
    return [row["SeriesInstanceUID"] for row in csv.DictReader(text.splitlines())]


def exported(url: str, folder: Path, *words: str, exit_code: int = 0) -> tuple[str, str]:
    command = [*EXPORT, "--url", url, *words]
    done = warm.run(command, cwd=folder, env=without_settings())
    assert done.returncode == exit_code, done.stderr
    return done.stdout, done.stderr


def test_the_guides_command_writes_yesterdays_series(tmp_path: Path, url: str) -> None:
    shell(filled(line(JOBS, "python server.py export --updated-since")), tmp_path, SERIES_URL=url)
    assert uids((tmp_path / "series.csv").read_text()) == [f"{STUDY}.1"]
    assert (tmp_path / "series.csv").stat().st_mode & 0o777 == 0o600


@pytest.mark.slow
@pytest.mark.peer("curl")
def test_the_guides_request_streams_the_same(tmp_path: Path, url: str) -> None:
    command = line(JOBS, 'curl -H "Authorization: Bearer $KEY" \'http://127.0.0.1:8000/series.csv')
    command = command.replace('-H "Authorization: Bearer $KEY" ', "").replace("http://127.0.0.1:8000", url)
    assert uids(shell(command)) == []
    whole = shell(re.sub(r"\?.*'", "'", command))
    assert sorted(uids(whole)) == [f"{STUDY}.{n}" for n in range(3)]
    assert exported(url, tmp_path)[0].splitlines() == whole.splitlines()


@pytest.mark.slow
def test_the_guides_lines_read_it_into_pandas_as_text(tmp_path: Path, url: str) -> None:
    (lines,) = re.findall(r"```python\n(import pandas.*?)```", JOBS, re.S)
    lines = re.sub(r"http://127.0.0.1:8000/series.csv\?[^\"]*", f"{url}/series.csv", lines)
    told = 'print(sorted(series["SeriesInstanceUID"]), set(series["NumInstances"]), set(series["Missing"]))'
    database = {"DATABASE_URL": f"sqlite+aiosqlite:///{tmp_path}/series.db"}
    key = make_key(tmp_path, database, "research", "series:read").read_text().strip()
    command = [sys.executable, "-c", f"KEY = {key!r}\n{lines}\n{told}"]
    env = without_settings() | {"no_proxy": "*"}
    done = subprocess.run(command, cwd=tmp_path, env=env, capture_output=True, text=True, check=False)
    assert done.stdout == f"{[f'{STUDY}.{n}' for n in range(3)]} {{'1'}} {{'0'}}\n", done.stderr


@pytest.mark.slow
def test_lines_of_json_are_whole_records(tmp_path: Path, url: str) -> None:
    out, err = exported(url, tmp_path, "--format", "jsonl", "--updated-since", "yesterday", "--modality", "CT")
    records = [json.loads(line) for line in out.splitlines()]
    assert [record["SeriesInstanceUID"] for record in records] == [f"{STUDY}.1", f"{STUDY}.0"]
    assert {record["PatientName"] for record in records} == {"=1+1"}
    assert err == "2 series\n"
    assert httpx.get(f"{url}/series/{STUDY}.0", trust_env=False).json() == records[1]


@pytest.mark.slow
def test_the_guides_command_writes_a_row_for_each_study(tmp_path: Path, url: str) -> None:
    command = filled(line(JOBS, "python server.py export --studies"))
    shell(re.sub("--updated-(since|until) [a-z]+", "", command), tmp_path, SERIES_URL=url)
    (row,) = csv.DictReader((tmp_path / "studies.csv").read_text().splitlines())
    assert (row["NumSeries"], row["NumInstances"], row["PatientName"]) == ("3", "3", "'=1+1")
    out, err = exported(url, tmp_path, "--studies", "--modality", "CT", "--format", "jsonl")
    (study,) = [json.loads(line) for line in out.splitlines()]
    assert (study["StudyInstanceUID"], study["NumSeries"], err) == (STUDY, 3, "1 studies\n")
    assert len(exported(url, tmp_path, "--studies", "--study", "1.9")[0].splitlines()) == 1
    assert "is for series" in exported(url, tmp_path, "--studies", "--doubtful", exit_code=2)[1]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("words", "exit_code", "said"),
    [
        (("--updated-since", "tomorrow"), 2, "tomorrow is not a day or time"),
        (("--study-date", "2026"), 1, "HTTP 422"),
        (("--url", "ftp://x"), 2, "is not an http or https URL"),
    ],
)
def test_a_wrong_word_leaves_no_file(
    tmp_path: Path, url: str, words: tuple[str, ...], exit_code: int, said: str
) -> None:
    assert said in exported(url, tmp_path, "--output", "out.csv", *words, exit_code=exit_code)[1]
    assert list(tmp_path.glob("out*")) == []


@pytest.mark.slow
def test_a_terminal_shows_how_far_it_is(tmp_path: Path, url: str) -> None:
    with on_a_terminal([*EXPORT, "--url", url, "--output", "out.csv"], tmp_path) as terminal:
        terminal.wait_for(r"3 series")
        assert terminal.ended() == 0
    assert len(uids((tmp_path / "out.csv").read_text())) == 3
