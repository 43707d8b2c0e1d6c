"""`server.py on-complete`, as a user runs it: real server, real scripts, kill -9 of either side."""

import json
import os
import random
import re
import signal
import sqlite3
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager, suppress
from pathlib import Path
from typing import Any

import httpx
import pytest

from bench.rig.processes import ROOT, Process, make_key, running, server, start_gateway, start_server, without_settings
from bench.rig.senders import sending, synthetic_image
from tests.rig.factories import STUDY, make_report
from tests.rig.papers import JOBS, filled, line
from tests.rig.scripts import ON_COMPLETE, SCRIPT, once, ran, script, until
from tests.rig.terminals import on_a_terminal


def post(url: str, series: int, *sops: str, **more: Any) -> str:
    """Report images of a series; its UID."""
    report = make_report(*sops, series=f"{STUDY}.{series}").model_copy(update=more)
    httpx.post(f"{url}/series", json=report.model_dump(mode="json"), trust_env=False).raise_for_status()
    return report.SeriesInstanceUID


@contextmanager
def following(folder: Path, url: str, *words: str, **environment: str) -> Iterator[Process]:
    command = [*ON_COMPLETE, "--url", url, *words]
    with running(Process("on-complete", command, folder, **environment)) as process:
        yield process


ALL = ("--since", "0", "--", "./run.sh", "{SeriesInstanceUID}")


def test_the_guides_command_runs_a_script_for_each_complete_series_until_it_is_told_to_stop(tmp_path: Path) -> None:
    script(tmp_path)
    with server(tmp_path) as (_, url):
        old = post(url, 0, "1")
        key = make_key(tmp_path, {"DATABASE_URL": f"sqlite+aiosqlite:///{tmp_path}/series.db"}, "ai", "series:read")
        writes = {"DATABASE_URL": f"sqlite+aiosqlite:///{tmp_path}/series.db"}
        gateway = make_key(tmp_path, writes, "gateway", "series:write").read_text().strip()
        command = f"exec {filled(line(JOBS, 'python server.py on-complete --modality'))}"
        settings = {"SERIES_URL": url, "SERIES_KEY_FILE": str(key), "no_proxy": "*"}
        with running(Process("on-complete", ["sh", "-ec", command], tmp_path, **settings)) as process:
            until(lambda: place(tmp_path) is not None)
            with httpx.Client(base_url=url, headers={"Authorization": f"Bearer {gateway}"}, trust_env=False) as http:
                for series, sops, more in (
                    *((1, "1", {}), (2, "1", {"Verdict": "capped"}), (3, "1", {"Attributes": {"Modality": ["MR"]}})),
                    *((1, "2", {"Revision": 2}), (1, "3", {"PatientID": "another"}), (4, "1", {"Verdict": None})),
                ):
                    report = make_report(sops, series=f"{STUDY}.{series}").model_copy(update=more)
                    http.post("/series", json=report.model_dump(mode="json")).raise_for_status()
            process.wait_for_event("script.ended", revision=2)
            assert process.stop() == 0
    assert ran(tmp_path) == [
        [f"{STUDY}.1", "1", "created", "idle", "1", "0"],
        [f"{STUDY}.1", "2", "revised", "contradicted", "idle", "2", "0"],
    ]
    assert old not in str(ran(tmp_path))


@pytest.mark.slow
def test_the_guides_command_runs_a_script_for_each_complete_study(tmp_path: Path) -> None:
    text = re.findall(r"^#!/bin/sh\n(?:.*\n)*?(?=```)", JOBS, re.MULTILINE)[1]
    script(tmp_path, text, "run-study.sh")
    written = tmp_path / "studies.txt"

    def declare(study: str) -> None:
        shell(filled(line(JOBS, "python server.py declare --study"), STUDY=study), tmp_path)

    with server(tmp_path) as (_, url):
        for study, series in (("1.1", "1.1.1"), ("1.1", "1.1.2"), ("1.2", "1.2.1")):
            report = make_report("1", study=study, series=series).model_copy(update={"Verdict": None})
            httpx.post(f"{url}/series", json=report.model_dump(mode="json"), trust_env=False).raise_for_status()
        command = f"exec {filled(line(JOBS, 'python server.py on-complete --study'))}"
        with running(Process("on-complete", ["sh", "-ec", command], tmp_path, SERIES_URL=url, no_proxy="*")) as process:
            process.wait_for_event("changes.followed")
            declare("1.1")
            process.wait_for_event("script.ended", study_instance_uid="1.1", revision=1)
            late = make_report("1", study="1.1", series="1.1.3").model_copy(update={"Verdict": None})
            httpx.post(f"{url}/series", json=late.model_dump(mode="json"), trust_env=False).raise_for_status()
            declare("1.1")
            process.wait_for_event("script.ended", study_instance_uid="1.1", revision=3)
            assert process.stop() == 0
        assert written.read_text().splitlines() == [
            "1.1 is declared, with 2 series and 2 images, 0 missing",
            "1.1 is declared, with 3 series and 3 images, 0 missing",
        ]
        declare("1.2")
        script(tmp_path)
        once(tmp_path, url, "--study", "--", "./run.sh", "{StudyInstanceUID}")  # goes on where the other was ended
        assert [words[0] for words in ran(tmp_path)] == ["1.2"]
        refused = once(tmp_path, url, "--state", "on-complete-studies.db", *ALL, exit_code=1)
        assert "has jobs for studies" in refused
        assert "{SeriesInstanceUID}" in once(tmp_path, url, "--study", *ALL, exit_code=1)


def place(folder: Path) -> int | None:
    """Up to which change an on-complete in this folder has read."""
    path = folder / "on-complete.db"
    if not path.exists():
        return None
    with closing(sqlite3.connect(path, timeout=60)) as connection:
        try:
            row = connection.execute("SELECT Number FROM place").fetchone()
        except sqlite3.OperationalError:  # it is being made
            return None
    return row and int(row[0])


def test_the_guides_script_writes_what_it_is_told(tmp_path: Path) -> None:
    text, _ = re.findall(r"^#!/bin/sh\n(?:.*\n)*?(?=```)", JOBS, re.MULTILINE)
    script(tmp_path, text)
    told = {"VERDICT": "idle", "NUM_INSTANCES": "3", "MISSING": "1"}
    subprocess.run(["./run.sh", "1.2.3"], cwd=tmp_path, env=os.environ | told, check=True)
    assert (tmp_path / "complete.txt").read_text() == "1.2.3 is idle, with 3 images, 1 missing\n"


@pytest.mark.slow
def test_once_does_what_there_is_and_a_second_time_nothing(tmp_path: Path) -> None:
    script(tmp_path)
    with server(tmp_path) as (_, url):
        first = [post(url, n, "1") for n in range(3)]
        once(tmp_path, url, *ALL)
        once(tmp_path, url, *ALL)
        assert [uid for uid, *_ in ran(tmp_path)] == first
        post(url, 1, "2")
        once(tmp_path, url, *ALL)
    assert [words[1] for words in ran(tmp_path)] == ["1", "1", "1", "2"]


@pytest.mark.slow
def test_first_only_runs_once_a_series(tmp_path: Path) -> None:
    script(tmp_path)
    with server(tmp_path) as (_, url):
        post(url, 1, "1", Verdict=None)
        for sop in "234":
            post(url, 1, sop)
            once(tmp_path, url, "--first-only", *ALL)
    assert [words[1] for words in ran(tmp_path)] == ["2"]


@pytest.mark.slow
def test_a_script_that_fails_is_tried_again_listed_and_replayed(tmp_path: Path) -> None:
    script(tmp_path, f"{SCRIPT}test -e mended || test $REVISION = 2\n")
    with server(tmp_path) as (_, url):
        post(url, 1, "1")
        post(url, 1, "2")
        told = once(tmp_path, url, "--tries", "2", *ALL, exit_code=1)
        assert [words[1] for words in ran(tmp_path)] == ["1", "1", "2"]  # nothing overtakes
        assert told.count("script.delayed") == told.count("script.rejected") == 1
        listed = shell(filled(f"{line(JOBS, 'python server.py on-complete --failed')} --json"), tmp_path)
        (failed,) = json.loads(listed)
        assert (failed["series"], failed["revision"], failed["problem"]) == (f"{STUDY}.1", 1, "exit code 1")
        (tmp_path / "mended").touch()
        assert shell(filled(line(JOBS, "python server.py on-complete --replay")), tmp_path).startswith(
            "1 will be tried"
        )
        once(tmp_path, url, *ALL)
    assert [words[1] for words in ran(tmp_path)] == ["1", "1", "2", "1"]
    assert json.loads(shell(filled("python server.py on-complete --failed --json"), tmp_path)) == []


def shell(command: str, folder: Path) -> str:
    done = subprocess.run(
        ["sh", "-ec", command.partition("#")[0] + (" --json" if command.endswith("--json") and "#" in command else "")],
        cwd=folder,
        env=without_settings(),
        capture_output=True,
        text=True,
        check=True,
    )
    return done.stdout


WAITS = "#!/bin/sh\ntouch began\nwhile ! test -e go; do sleep 0.05; done\ntouch ended\n"


@pytest.mark.slow
def test_a_script_that_runs_may_end_when_on_complete_is_told_to_stop(tmp_path: Path) -> None:
    script(tmp_path, WAITS)
    with server(tmp_path) as (_, url):
        for n in range(3):
            post(url, n, "1")
        with following(tmp_path, url, *ALL) as process:
            until((tmp_path / "began").exists)
            process.popen.send_signal(signal.SIGTERM)
            (tmp_path / "go").touch()
            assert process.popen.wait(120) == 0
    assert (tmp_path / "ended").exists()
    assert len(process.events("script.ended")) == 1


@pytest.mark.slow
def test_several_scripts_run_at_a_time_and_of_one_series_one(tmp_path: Path) -> None:
    script(tmp_path, '#!/bin/sh\necho x >> "begun$1"\nwhile ! test -e go; do sleep 0.05; done\n')
    with server(tmp_path) as (_, url):
        uids = [post(url, n, "1") for n in range(2)]
        post(url, 0, "2")
        with following(tmp_path, url, "--jobs", "3", *ALL) as process:
            until(lambda: all((tmp_path / f"begun{uid}").exists() for uid in uids))
            (tmp_path / "go").touch()
            process.wait_for_event("script.ended", revision=2)
    ended = [(event["series_instance_uid"], event["revision"]) for event in process.events("script.ended")]
    assert [revision for uid, revision in ended if uid == uids[0]] == [1, 2]


@pytest.mark.slow
def test_a_script_that_outlives_a_killed_on_complete_is_waited_for(tmp_path: Path) -> None:
    script(tmp_path, f"{WAITS}{SCRIPT.partition(chr(10))[2]}")
    with server(tmp_path) as (_, url):
        post(url, 1, "1")
        with following(tmp_path, url, *ALL) as first:
            until((tmp_path / "began").exists)
            first.popen.kill()
            first.popen.wait()
            assert "still runs" in once(tmp_path, url, *ALL, exit_code=1)
            with following(tmp_path, url, *ALL) as second:
                second.wait_for_event("backlog.locked")
                assert ran(tmp_path) == []
                (tmp_path / "go").touch()
                second.wait_for_event("script.ended")
    assert [words[1] for words in ran(tmp_path)] == ["1", "1"]  # at least once


@pytest.mark.slow
def test_a_script_that_takes_too_long_is_ended_with_all_that_it_started(tmp_path: Path) -> None:
    script(tmp_path, "#!/bin/sh\nsh -c 'echo $$ > child; exec sleep 600'\n")
    with server(tmp_path) as (_, url):
        post(url, 1, "1")
        told = once(tmp_path, url, "--timeout", "0.5", "--tries", "1", *ALL, exit_code=1)
    assert "took longer than 0.5 s (--timeout)" in told
    child = int((tmp_path / "child").read_text())
    until(lambda: not Path(f"/proc/{child}").exists())


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ((), "a command is missing"),
        (("--", "./no-such-program"), "chmod +x"),
        (("--verdict", "complete", "--", "true"), "complete is not one of verified, declared, expected"),
        (("--since", "yesterday", "--", "true"), "neither 'now' nor the number of a change"),
        (("--url", "ftp://x", "--", "true"), "is not an http or https URL"),
    ],
)
def test_a_wrong_word_is_answered_with_the_cure(tmp_path: Path, words: tuple[str, ...], said: str) -> None:
    assert said in once(tmp_path, "http://127.0.0.1:9", *words, exit_code=2)
    assert not (tmp_path / "on-complete.db").exists()


@pytest.mark.slow
def test_what_cannot_be_asked_is_said_once_and_nothing_is_taken_for_done(tmp_path: Path) -> None:
    script(tmp_path)
    assert "ConnectError" in once(tmp_path, "http://127.0.0.1:9", *ALL, exit_code=1)
    assert "{PatientName} is not known" in once(
        tmp_path, "http://127.0.0.1:9", "--", "true", "{PatientName}", exit_code=1
    )
    with server(tmp_path) as (_, url):
        post(url, 1, "1")
        once(tmp_path, url, *ALL)
        with closing(sqlite3.connect(tmp_path / "on-complete.db")) as connection:
            connection.execute("UPDATE place SET Number = 77")
            connection.commit()
        said = once(tmp_path, url, *ALL, exit_code=1)
        assert re.search(r"last change is [12], but 77 was read", said)  # 2, if the study was told of, too


@pytest.mark.slow
def test_a_terminal_shows_what_runs_and_what_scripts_say(tmp_path: Path) -> None:
    script(tmp_path, "#!/bin/sh\necho out of the script\nwhile ! test -e go; do sleep 0.05; done\n")
    with server(tmp_path) as (_, url):
        uid = post(url, 1, "1")
        with on_a_terminal([*ON_COMPLETE, "--url", url, *ALL], tmp_path, width=200) as terminal:
            terminal.wait_for(r"0 done  1 running  0 waiting")
            terminal.wait_for(rf"series +revision +images +verdict +runs *\n *{re.escape(uid)} +1 +1 +idle +\d+ s")
            (tmp_path / "go").touch()
            terminal.wait_for(r"out of the script")
            terminal.wait_for(r"1 done  0 running")
            terminal.type("\x03")
            assert terminal.ended() == 0


@pytest.mark.slow
@pytest.mark.peer("curl")
@pytest.mark.parametrize("program", ["python examples/on_complete.py", "sh examples/on_complete.sh"])
def test_the_examples_do_the_same(tmp_path: Path, program: str) -> None:
    script(tmp_path, '#!/bin/sh\necho "$1" >> ran\n')
    (tmp_path / "place").write_text("0")
    _, _, command = line(JOBS, f"SERIES_KEY=$KEY {program}").partition("SERIES_KEY=$KEY ")
    with server(tmp_path) as (_, url):
        post(url, 1, "1")
        post(url, 2, "1", Attributes={"Modality": ["MR"]})
        post(url, 3, "1", Verdict="capped")
        post(url, 1, "9", PatientID="another")
        key = make_key(tmp_path, {"DATABASE_URL": f"sqlite+aiosqlite:///{tmp_path}/series.db"}, "ai", "admin")
        secret = key.read_text().strip()
        command = filled(command).replace("examples/", f"{ROOT}/examples/").replace("http://127.0.0.1:8000", url)
        env = without_settings() | {"SERIES_KEY": secret, "no_proxy": "*"}
        example = subprocess.Popen(["sh", "-ec", command], cwd=tmp_path, env=env, start_new_session=True)
        try:
            until(lambda: (tmp_path / "place").read_text().strip() == "4")
            report = make_report("2", series=f"{STUDY}.1").model_dump(mode="json")
            headers = {"Authorization": f"Bearer {secret}"}
            httpx.post(f"{url}/series", json=report, headers=headers, trust_env=False).raise_for_status()
            until(lambda: (tmp_path / "place").read_text().strip() == "5")
        finally:
            os.killpg(example.pid, signal.SIGKILL)  # a pipe's other end, too
            example.wait()
    assert ran(tmp_path) == [[f"{STUDY}.1"]] * 2


# --- kill -9 ------------------------------------------------------------------------------------------------------

SERIES, REVISIONS = 24, 3
FAST = {"GATEWAY_IDLE_TIMEOUT_S": "0.3", "GATEWAY_IDLE_POLICY": "fixed", "GATEWAY_RETRY_MAX_S": "1"}


@pytest.mark.slow
def test_no_series_is_forgotten_through_kill_9_of_all_three_and_each_runs_in_order(tmp_path: Path) -> None:
    rng = random.Random(4)
    script(tmp_path, '#!/bin/sh\necho "$1 $REVISION" >> begun\nsleep 0.02\necho "$1 $REVISION $NUM_INSTANCES" >> ran\n')
    server_, url = start_server(tmp_path)
    gateway, port = start_gateway(tmp_path, url, environment=FAST)
    processes = {"server": server_, "gateway": gateway, "follower": follow_all(tmp_path, url)}
    again: dict[str, Callable[[], Process]] = {
        "server": lambda: start_server(tmp_path, int(url.rpartition(":")[2]))[0],
        "gateway": lambda: start_gateway(tmp_path, url, port, environment=FAST)[0],
        "follower": lambda: follow_all(tmp_path, url),
    }
    reported = threading.Event()
    sender = threading.Thread(target=send_all, args=(port, url, reported), daemon=True)
    sender.start()
    killed: list[str] = []
    try:
        while not reported.is_set() or len(killed) < 2 * len(again):
            for name in rng.sample(sorted(again), len(again)):
                time.sleep(rng.uniform(0.2, 1.5))  # a moment at random
                processes[name].kill()
                processes[name] = again[name]()
                killed.append(name)
        wanted = told(url)
        assert {uid for uid, _, count in wanted if count == str(REVISIONS)} == {f"{STUDY}.{n}" for n in range(SERIES)}
        until(lambda: {tuple(words) for words in ran(tmp_path)} == wanted)
        processes["follower"].wait_for_event("changes.followed")  # the last one may have been begun when all was done
        assert processes["follower"].stop() == 0
    finally:
        for process in processes.values():
            process.kill()
    for uid in {uid for uid, _, _ in wanted}:
        revisions = [int(revision) for one, revision, _ in ran(tmp_path) if one == uid]
        assert revisions == sorted(revisions)


def follow_all(folder: Path, url: str) -> Process:
    return Process("on-complete", [*ON_COMPLETE, "--url", url, "--jobs", "4", *ALL], folder)


def send_all(port: int, url: str, reported: threading.Event) -> None:
    """One image of each series, until the server knows it, and the next one; what is not answered is sent again."""
    for count in range(1, REVISIONS + 1):
        uids = [f"{STUDY}.{n}" for n in range(SERIES)]
        waiting = [synthetic_image(STUDY, uid, f"{uid}.{count}") for uid in uids]
        while waiting:
            with suppress(RuntimeError):
                for image in sending(list(waiting), port, "CT1"):
                    waiting.remove(image)
            time.sleep(0.1)
        while {row["NumInstances"] for row in asked(url, "series")["series"]} != {count}:
            time.sleep(0.1)
    reported.set()


def asked(url: str, path: str) -> Any:
    """What the server answers, as soon as it does."""
    while True:
        with suppress(httpx.HTTPError):
            return httpx.get(f"{url}/{path}", trust_env=False).raise_for_status().json()
        time.sleep(0.1)


def told(url: str) -> set[tuple[str, str, str]]:
    """Each revision that a script is to run for: its series, its number and how many images it has."""
    changes = asked(url, "changes?limit=1000")["changes"]
    return {(one["SeriesInstanceUID"], str(one["Revision"]), str(one["NumInstances"])) for one in changes}
