"""Commands of README and docs, run as they stand there, with this machine's ports, paths and keys in them."""

import json
import re
import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import pydicom
import pytest
from pydicom.data import get_testdata_file

from bench.rig.processes import ROOT, Process, gateway, running, server
from tests.rig.factories import SERIES, STUDY, make_report
from tests.rig.papers import (
    API,
    INDEX,
    JOBS,
    KUBERNETES,
    OPERATIONS,
    README,
    SERVER_GUIDE,
    TRY,
    filled,
    line,
    lines,
    shell,
)
from tests.rig.sending import new_series, write

BIN = Path(sys.executable).parent
PREPARED = [option for name in ("running", "testing") for option in ("-o", f".venv/{name}")]  # this environment will do


# --- make ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("pacs", ["", pytest.param("orthanc", marks=[pytest.mark.peer("orthanc"), pytest.mark.slow])])
def test_make_demo_stores_what_was_sent(pacs: str) -> None:
    assert "make demo" in README
    out = shell(f"make {' '.join(PREPARED)} demo BIN={BIN} {pacs and f'PACS={pacs}'}")
    (proved,) = re.findall(r"^demo: stored 14 series, 81 instances, equal to what was sent(.*)$", out, re.MULTILINE)
    assert proved == ("; verified by the PACS: 14" if pacs else "")
    (following,) = re.findall(r"^next: make (\w+)", out.splitlines()[-1])
    assert shell(f"make --dry-run {' '.join(PREPARED)} {following}")


@pytest.mark.parametrize(
    ("target", "wanted"),
    [
        ("play", "python -m bench.play"),
        ("test", "python -m pytest"),
        ("docs", "python -m bench.docs"),
        ("test-all", 'python -m pytest -m "slow or not slow"'),
        ("test ARGS='-k idle'", "python -m pytest -k idle"),
        ("compose-test", "python -m pytest -n 0 tests/e2e/test_compose.py tests/e2e/test_systemd_units.py"),
        ("faults", "python -m bench.faults"),
        ("bench", "python -m bench.receive"),
        ("policies", "python -m bench.completion"),
        ("completion", "python -m bench.completion"),
        ("policies TRACES=folder", 'python -m bench.completion --traces "folder"'),
        ("attacks", "python -m bench.attacks"),
        ("scale ARGS='--trials 20 --seed 1'", "python -m bench.scale --trials 20 --seed 1"),
        ("soak ARGS='--series 2000'", "python -m bench.soak --series 2000"),
        ("mutants ARGS='--modules idle --seed 1'", "python -m bench.mutants --modules idle --seed 1"),
        ("up", "docker compose up --build"),
    ],
)
def test_make_runs_what_the_tests_run_in_smaller_rounds(target: str, wanted: str) -> None:
    out = shell(f"make --dry-run {' '.join(PREPARED)} BIN=bin {target}")
    assert [line.removeprefix("bin/").strip() for line in out.splitlines()] == [wanted]


def test_make_alone_names_every_target() -> None:
    makefile = (ROOT / "Makefile").read_text()
    (targets,) = re.findall(r"^\.PHONY: (.+)$", makefile, re.MULTILINE)
    shown = [line.split()[0] for line in shell("make").splitlines()]
    assert sorted(shown) == sorted([*targets.split(), "help"])


# --- docs/try.md: three terminals ---------------------------------------------------------------------------------


@contextmanager
def terminal(command: str, **environment: str) -> Iterator[Process]:
    """A command that goes on running, in the project's folder."""
    with running(Process("terminal", ["sh", "-ec", f"exec {command}"], ROOT, **environment)) as process:
        yield process


@contextmanager
def two_terminals(folder: Path) -> Iterator[tuple[str, Process, int]]:
    """Server and gateway as docs/try.md starts them: the server's URL, the gateway and its port."""
    database = {"DATABASE_URL": f"sqlite+aiosqlite:///{folder}/series.db"}
    journal = {"GATEWAY_JOURNAL_PATH": f"{folder}/journal.db"}
    uvicorn = line(TRY, ".venv/bin/uvicorn").partition("#")[0].replace(".venv/bin", str(BIN), 1)
    with terminal(f"{uvicorn} --port 0", **database) as one:
        url = one.wait_for(lambda said: (re.findall(r"running on (http://\S+)", said) or [None])[0])
        start = filled(line(TRY, ".venv/bin/python client.py").partition("#")[0])
        with terminal(f"{start} --scp-port 0 --server-url {url}", **journal) as two:
            yield url, two, int(two.wait_for_event("gateway.started")["port"])


DCMTK = pytest.mark.peer("dcmtk")
SENDERS = [
    pytest.param("storescu -xs --no-halt +sd +r -aec STORESCP", {"jpeg2000", "rle"}, marks=DCMTK, id="storescu"),
    pytest.param("dcmsend", set(), marks=[DCMTK, pytest.mark.slow], id="dcmsend"),
    pytest.param(".venv/bin/python -m pynetdicom storescu", set(), id="pynetdicom"),
]  # and the compressions that they skip


def sending(sender: str, port: int) -> str:
    return filled(line(TRY, sender)).replace(" 6667 ", f" {port} ")


@pytest.mark.peer("curl")
@pytest.mark.parametrize(("sender", "_skipped"), SENDERS)
def test_three_terminals_end_with_rows(tmp_path: Path, sender: str, _skipped: set[str]) -> None:
    folder = line(TRY, "FOLDER=").replace(".venv/bin/python", sys.executable)
    with two_terminals(tmp_path) as (url, gateway, port):
        said = shell(f"{folder}\n{sending(sender, port)} 2>&1", tmp_path, TCP_NODELAY="1")
        for _ in range(7):
            gateway.wait_for_event("report.delivered")
        rows = json.loads(shell(line(TRY, "curl http://127.0.0.1:8000/series").replace("http://127.0.0.1:8000", url)))[
            "series"
        ]
    assert (len(rows), sum(row["NumInstances"] for row in rows)) == (7, 17)
    assert said == ""  # nothing to be puzzled by


@pytest.mark.slow
@pytest.mark.parametrize(("sender", "skipped"), SENDERS)
def test_senders_go_on_behind_an_image_that_they_skip(tmp_path: Path, sender: str, skipped: set[str]) -> None:
    names = {"plain": "CT_small.dcm", "jpeg2000": "JPEG2000.dcm", "rle": "SC_rgb_rle.dcm", "late": "rtdose_1frame.dcm"}
    (tmp_path / "own" / "deeper").mkdir(parents=True)
    files = {what: Path(str(get_testdata_file(name))) for what, name in names.items()}
    for what, path in files.items():
        shutil.copy(path, tmp_path / "own" / "deeper" / f"{what}.dcm")
    with two_terminals(tmp_path) as (url, gateway, port):
        shell(sending(sender, port), tmp_path, FOLDER=str(tmp_path / "own"), TCP_NODELAY="1")
        assert gateway.stop() == 0
        rows = httpx.get(f"{url}/series", trust_env=False).json()["series"]
    uids = {what: str(pydicom.dcmread(path).SeriesInstanceUID) for what, path in files.items()}
    assert {row["SeriesInstanceUID"] for row in rows} == {uid for what, uid in uids.items() if what not in skipped}


@pytest.mark.slow
@DCMTK
def test_the_guide_sends_one_image_by_storescu(tmp_path: Path) -> None:
    write(tmp_path, new_series(1))
    (file,) = tmp_path.glob("*.dcm")
    file.rename(tmp_path / "one.dcm")
    with server(tmp_path) as (_, url), gateway(tmp_path, url) as (process, port):
        command = line(OPERATIONS, "storescu").partition(" && ")[0]
        shell(command.replace("HOST 6667", f"127.0.0.1 {port}"), tmp_path, TCP_NODELAY="1")
        assert process.stop() == 0
        assert len(httpx.get(f"{url}/series", trust_env=False).json()["series"]) == 1


@pytest.mark.slow
@pytest.mark.peer("curl")
def test_the_five_fields_by_curl_are_stored(tmp_path: Path) -> None:
    (command,) = re.findall(r"^curl -H 'Content-Type.*?\}'$", API, re.MULTILINE | re.DOTALL)
    with server(tmp_path) as (_, url):
        record = json.loads(shell(command.replace("http://127.0.0.1:8000", url)))
        assert (record["SeriesInstanceUID"], record["NumInstances"]) == ("1.2.3", 40)
        assert httpx.get(f"{url}/series/1.2.3", trust_env=False).json() == record


# --- docs/server.md, and keys in docs/try.md and docs/operations.md -----------------------------------------------


@pytest.mark.slow
@pytest.mark.peer("curl")
def test_keys_are_made_used_listed_and_revoked_as_the_guide_says(tmp_path: Path) -> None:
    database = {"DATABASE_URL": f"sqlite+aiosqlite:///{tmp_path}/series.db"}
    gateway, reader = lines(SERVER_GUIDE, "python server.py keys create")
    with server(tmp_path) as (_, url):
        shell(filled(gateway, **{"/etc/gateway": tmp_path}), **database)
        assert (tmp_path / "key").read_text().startswith("sgk_")
        (key,) = re.findall(r"sgk_\S+", shell(filled(reader), **database))
        readers = [
            line(SERVER_GUIDE, "curl -H").replace("https://gateway.example", url),
            line(TRY, 'curl -H "Authorization').replace("http://127.0.0.1:8000", url).replace("KEY", "$KEY"),
            line(OPERATIONS, "storescu").partition(" && ")[2].replace("http://127.0.0.1:8000", url),
        ]
        for command in readers:
            assert json.loads(shell(command, KEY=key)) == {"series": [], "next": None}
            assert "series" not in json.loads(shell(command, KEY="wrong"))
        listed = shell(filled(line(SERVER_GUIDE, "python server.py keys list")), **database)
        (identity,) = re.findall(r"(\w{12})\W+ai\b", listed)
        shell(filled(line(SERVER_GUIDE, "python server.py keys revoke"), **{"3f9a12c07b5e": identity}), **database)
        assert "series" not in json.loads(shell(readers[0], KEY=key))


@pytest.mark.peer("curl")
def test_the_guides_curls_are_answered(tmp_path: Path) -> None:
    database = {"DATABASE_URL": f"sqlite+aiosqlite:///{tmp_path}/series.db"}
    with server(tmp_path) as (_, url):
        made = json.loads(shell(filled("python server.py keys create me --scope admin --json"), **database))
        key = {"KEY": made["key"]}
        for report in (make_report("1", "2"), make_report("3", patient_id="another")):
            headers = {"Authorization": f"Bearer {made['key']}"}
            httpx.post(f"{url}/series", json=report.model_dump(mode="json"), headers=headers, trust_env=False)

        def asked(beginning: str, **values: object) -> str:
            command = filled(line(SERVER_GUIDE, beginning), **values)
            command = command.replace("…", '--fail-with-body --header "Authorization: Bearer $KEY"')
            return re.sub(r"(?<=[ '])/(?=dicom-web|conflicts|changes|studies)", f"{url}/", command)

        assert shell(asked("curl … '/dicom-web/studies"), **key) == ""  # nobody is called so: 204
        (series,) = json.loads(shell(asked("curl … '/dicom-web/series"), **key))
        assert series["0020000E"]["Value"] == [SERIES]
        (conflict,) = json.loads(shell(asked("curl … /conflicts "), **key))["conflicts"]
        shown = json.loads(shell(asked("curl … /conflicts/DIGEST", DIGEST=conflict["Digest"]), **key))
        assert shown["Record"]["SeriesInstanceUID"] == SERIES
        shell(asked("curl … -X POST /conflicts", DIGEST=conflict["Digest"]), **key)
        assert json.loads(shell(asked("curl … /conflicts "), **key))["conflicts"] == []
        changes = json.loads(shell(asked("curl … '/changes?since"), **key))
        assert [change["SeriesInstanceUID"] for change in changes["changes"]] == [SERIES] * 3
        of_studies = json.loads(shell(asked("curl … '/changes?subject"), **key))["changes"]
        assert {change["StudyInstanceUID"] for change in of_studies} <= {STUDY}
        assert json.loads(shell(asked("curl … /studies/STUDY", STUDY=STUDY), **key))["NumSeries"] == 1
        with terminal(asked("curl -N … /changes/stream"), no_proxy="*", **key) as stream:
            told = stream.wait_for(lambda said: said.removeprefix("data: ") if said.startswith("data: ") else None)
            assert json.loads(told)["SeriesInstanceUID"] == SERIES
        with terminal(asked("curl -N … '/changes/stream"), no_proxy="*", **key) as stream:
            told = stream.wait_for(lambda said: said.removeprefix("data: ") if said.startswith("data: ") else None)
            assert json.loads(told)["Subject"] == "series"


@pytest.mark.peer("curl")
def test_the_guides_requests_find_what_came_incomplete(tmp_path: Path) -> None:
    with server(tmp_path) as (_, url):
        report = make_report("1").model_copy(update={"ExpectedInstances": 2, "ExpectedFrom": "tags"})
        httpx.post(f"{url}/series", json=report.model_dump(mode="json"), trust_env=False).raise_for_status()
        key = '-H "Authorization: Bearer $KEY" '
        command = line(JOBS, f"curl {key}'http://127.0.0.1:8000/series?").replace(key, "")
        assert command in INDEX  # without keys
        (found,) = json.loads(shell(command.replace("http://127.0.0.1:8000", url)))["series"]
        assert (found["SeriesInstanceUID"], found["Missing"]) == (SERIES, 1)
        of_studies = line(JOBS, f"curl {key}'http://127.0.0.1:8000/studies?").replace(key, "")
        (study,) = json.loads(shell(of_studies.replace("http://127.0.0.1:8000", url)))["studies"]
        assert (study["StudyInstanceUID"], study["Incomplete"]) == (STUDY, 1)
        for what in ("series", "studies"):
            for asked in lines(SERVER_GUIDE, f"curl … '/{what}?"):
                assert what in json.loads(shell(asked.replace("…", "--fail-with-body").replace("'/", f"'{url}/")))


@pytest.mark.slow
def test_webhooks_are_added_listed_and_removed_as_the_guide_says(tmp_path: Path) -> None:
    database = {"DATABASE_URL": f"sqlite+aiosqlite:///{tmp_path}/series.db"}
    whole, some, of_studies = lines(SERVER_GUIDE, "python server.py webhooks add")
    assert "whsec_" in shell(filled(whole), **database)
    listed = filled(line(SERVER_GUIDE, "python server.py webhooks list"))
    assert "ai.example" in shell(listed, **database)
    shell(filled(line(SERVER_GUIDE, "python server.py webhooks remove")), **database)
    assert "ai.example" not in shell(listed, **database)
    shell(filled(some), **database)
    (told,) = json.loads(shell(f"{listed} --json", **database))
    assert told["filters"] == {
        "Modality": ["CT"],
        "Verdict": ["verified", "expected"],
        "Kinds": ["created", "contradicted"],
    }
    shell(filled(of_studies), **database)
    (_, told) = json.loads(shell(f"{listed} --json", **database))
    assert told["filters"] == {"Verdict": ["verified", "declared"], "Subject": ["study"]}


@pytest.mark.slow
@pytest.mark.peer("postgresql")
def test_several_server_processes_on_postgresql_answer(postgresql_url: str) -> None:
    (command,) = re.findall(r"^DATABASE_URL=\S+ (uvicorn .+)$", SERVER_GUIDE, re.MULTILINE)
    with terminal(f"{BIN}/{command} --port 0", DATABASE_URL=postgresql_url) as process:
        url = process.wait_for(lambda said: (re.findall(r"running on (http://\S+)", said) or [None])[0])
        process.wait_for(lambda said: "Application startup complete" in said or None)
        assert httpx.get(f"{url}/health/ready", trust_env=False).status_code == 200


# --- docs/operations.md: systemd ----------------------------------------------------------------------------------


def test_the_guide_installs_every_file_with_its_mode(tmp_path: Path) -> None:
    for folder in ("etc/systemd/system", "etc/logrotate.d", "var/lib/series-server"):  # those that a machine has
        (tmp_path / folder).mkdir(parents=True)
    (tmp_path / "var/lib/series-server/key").write_text("sgk_key\n")
    for command in lines(OPERATIONS, "install "):
        if "/backup" not in command:
            installing = command.partition(" && systemd-sysusers")[0]
            shell(re.sub(r"(?<= )/(?=etc|var)", f"{tmp_path}/", installing))
    installed = {
        str(path.relative_to(tmp_path)): oct(path.stat().st_mode & 0o777)[2:]
        for path in tmp_path.rglob("*")
        if path.is_file()
    }
    assert installed == {
        "etc/sysusers.d/series-gateway.conf": "644",
        "etc/series-gateway/gateway.env": "600",
        "etc/series-gateway/server.env": "600",
        "etc/series-gateway/key": "600",
        "etc/systemd/system/series-gateway.service": "644",
        "etc/systemd/system/series-server.service": "644",
        "etc/logrotate.d/series-server": "644",
    }


# --- docs/kubernetes.md -------------------------------------------------------------------------------------------


@pytest.mark.peer("openssl")
def test_openssl_makes_a_certificate_for_the_servers_name(tmp_path: Path) -> None:
    shell(line(KUBERNETES, "openssl req"), tmp_path)
    said = shell("openssl x509 -in tls.crt -noout -ext subjectAltName,keyUsage", tmp_path)
    assert "DNS:server.series-gateway.svc" in said
    assert "Certificate Sign" in said
    shell("openssl verify -CAfile tls.crt tls.crt", tmp_path)


@pytest.mark.peer("kubectl")
def test_kubectl_builds_the_files() -> None:
    built = shell("kubectl kustomize deploy/kubernetes")
    assert {"StatefulSet", "Deployment", "NetworkPolicy"} <= set(re.findall(r"^kind: (\w+)$", built, re.MULTILINE))


def test_what_makes_the_first_key_in_the_pod_prints_the_key_and_leaves_none(tmp_path: Path) -> None:
    (command,) = re.findall(r"-- sh -c '(python server\.py keys create gateways.*?)'\)", KUBERNETES, re.DOTALL)
    key = shell(
        filled(command, **{"/tmp/key": tmp_path / "key"}),  # noqa: S108 - of the manifest
        DATABASE_URL=f"sqlite+aiosqlite:///{tmp_path}/series.db",
    )
    assert key.startswith("sgk_")
    assert len(key.split()) == 1
    assert not (tmp_path / "key").exists()
