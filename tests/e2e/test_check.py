"""`python client.py check`: each thing that can be wrong is provoked, and the line names it and its cure."""

import re
import socket
import sqlite3
import ssl
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing, contextmanager
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import trustme
from pydicom import Dataset
from pynetdicom import AE, evt
from pynetdicom.sop_class import StudyRootQueryRetrieveInformationModelFind, Verification  # type: ignore[attr-defined]

from bench.rig.peers import free_port, orthanc
from bench.rig.processes import ROOT, Process, gateway, running, server, without_settings
from common.settings import GatewaySettings, Peer, load
from common.threads import in_thread
from common.version import version
from console.findings import Finding, State
from gateway.cli.check import check
from gateway.cli.reach import dicom
from tests.rig.commands import NOWHERE, answer, client, client_json
from tests.rig.findings import READY, is_well, said, some_server
from tests.rig.sending import dead_letters, new_series, send


async def found(folder: Path, **settings: Any) -> list[Finding]:
    """What is found with these settings, the journal in `folder` and the rest harmless."""
    harmless = {"journal_path": folder / "journal.db", "scp_port": 0, "server_url": NOWHERE, "pacs_timeout_s": 2}
    return await check(load(GatewaySettings, {k: str(v) for k, v in (harmless | settings).items()}))


# --- the command ------------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.peer("orthanc")
def test_all_is_well_beside_a_running_gateway_a_server_and_a_pacs(tmp_path: Path) -> None:
    port, pacs_port = free_port(), free_port()
    database = f"sqlite+aiosqlite:///{tmp_path}/series.db"
    key = tmp_path / "key"
    settings = {"id": "gateway-1", "pacs": f"ORTHANC@127.0.0.1:{pacs_port}", "api_key_file": key, "scp_port": port}
    with server(tmp_path, DATABASE_URL=database) as (_, url), orthanc(tmp_path, port, dicom_port=pacs_port):
        scopes = ("--scope", "series:write", "--scope", "series:read")
        key.touch(mode=0o600)
        key.write_text(answer(database, "keys", "create", "gateway-1", *scopes)["key"])
        flags = [part for k, v in settings.items() for part in (f"--{k.replace('_', '-')}", str(v))]
        command = [sys.executable, str(ROOT / "client.py"), *flags, "--server-url", url]
        process = Process("gateway", command, tmp_path)
        with running(process):
            process.wait_for_event("gateway.started")
            report = client_json(tmp_path, *flags, "check", url=url)
            out = client(tmp_path, *flags, "check", url=url)
    lines = {(line["what"], line["state"]): line["detail"] for line in report["findings"]}
    assert report["ok"]
    assert "accepts images" in lines["gateway", "ok"]
    assert "answers C-ECHO" in lines["DICOM port", "ok"]
    of_pacs = [line["detail"] for line in report["findings"] if line["what"] == "PACS ORTHANC"]
    assert of_pacs[1:] == ["answers C-FIND from STORESCP", COUNTS_UNSEEN]
    assert "series:read and series:write" in lines["key", "ok"]
    assert "sound, schema" in lines["journal gateway-journal.db", "ok"]
    assert is_well(out), out
    assert key.read_text() not in out


@pytest.mark.slow
def test_a_failed_check_is_exit_code_3_with_the_cure_on_a_line_of_its_own(tmp_path: Path) -> None:
    out = client(tmp_path, "--scp-port", "0", "check", exit_code=3)
    (problem,) = [line for line in out.splitlines() if line.startswith("failed")]
    assert "server" in problem
    assert "Connection refused" in problem
    assert "→ Start it (`uvicorn server:app`), or correct GATEWAY_SERVER_URL" in out
    assert "Traceback" not in out


def test_wrong_settings_are_failed_lines(tmp_path: Path) -> None:
    report = client_json(tmp_path, "--scp-port", "x", "--id", "a/b", "check", exit_code=3)
    assert [line["what"] for line in report["findings"]] == ["settings", "settings"]
    assert report["findings"][0]["detail"].startswith("--scp-port='x'")


def test_few_file_descriptors_are_a_warning(tmp_path: Path) -> None:
    command = ["bash", "-c", f"ulimit -n 100; exec {sys.executable} {ROOT}/client.py --scp-port 0 check"]
    done = subprocess.run(command, cwd=tmp_path, env=without_settings(), capture_output=True, text=True, check=False)
    (needed,) = re.findall(r"100 here, (\d+) needed", done.stdout)
    assert int(needed) > 200  # GATEWAY_MAX_ASSOCIATIONS
    assert f"LimitNOFILE={2 * int(needed)}" in done.stdout


# --- settings ---------------------------------------------------------------------------------------------------


async def test_settings_that_are_unsafe_or_left_on_are_warnings(tmp_path: Path) -> None:
    key = tmp_path / "key"
    key.write_text("k")
    key.chmod(0o644)
    findings = await found(
        tmp_path,
        scp_host="0.0.0.0",  # noqa: S104 - never listened on
        allow_any_peer="true",
        trace_path=tmp_path / "trace.jsonl",
        api_key_file=key,
        server_url="http://nohost.invalid:8000",
    )
    settings = said(findings, "settings", "warning")
    assert "→ Set a name that stays the same: GATEWAY_ID=" in settings
    assert "GATEWAY_TRACE_PATH=" in settings
    assert f"chmod 600 {key}" in settings
    assert "List the senders in GATEWAY_ALLOWED_PEERS" in said(findings, "who may send", "warning")
    assert "in clear text → Set GATEWAY_TLS_CERT" in said(findings, "TLS", "warning")
    exposed = said(findings, "server", "warning")
    assert "the key and patients' names are sent to nohost.invalid in clear text" in exposed
    assert "begin GATEWAY_SERVER_URL with https://" in exposed


async def test_an_allow_list_and_loopback_are_fine(tmp_path: Path) -> None:
    findings = await found(tmp_path, allowed_peers="CT1,10.0.0.0/8", id="g", metrics_port=0)
    assert "CT1,10.0.0.0/8" in said(findings, "who may send", "ok")
    assert {f.what for f in findings if f.state != "ok"} == {"server"}


# --- ports ------------------------------------------------------------------------------------------------------


async def test_a_port_that_another_uses_is_named_with_the_cure(tmp_path: Path) -> None:
    with closing(socket.create_server(("127.0.0.1", 0))) as taken:
        port = taken.getsockname()[1]
        findings = await found(tmp_path, scp_port=port, metrics_port=port)
    assert f"127.0.0.1:{port} cannot be bound: Address already in use" in said(findings, "DICOM port", "failed")
    assert "or change GATEWAY_SCP_PORT" in said(findings, "DICOM port", "failed")
    assert "change GATEWAY_METRICS_PORT" in said(findings, "metrics port", "failed")


@pytest.mark.parametrize(
    ("host", "problem", "cure"),
    [
        ("192.0.2.1", "Cannot assign requested address", "change GATEWAY_SCP_PORT or GATEWAY_SCP_HOST"),
        (
            "nohost.invalid",
            "no address belongs to the name",
            "Use an address of this machine: change GATEWAY_SCP_PORT or GATEWAY_SCP_HOST",
        ),
    ],
)
async def test_an_address_that_is_not_ours_is_named(tmp_path: Path, host: str, problem: str, cure: str) -> None:
    findings = await found(tmp_path, scp_host=host, allow_any_peer="true")
    assert problem in said(findings, "DICOM port", "failed")
    assert cure in said(findings, "DICOM port", "failed")


async def test_workers_want_a_metrics_port_and_a_journal_each(tmp_path: Path) -> None:
    findings = await found(tmp_path, workers=3, metrics_port=free_port())
    assert len(said(findings, "metrics port", "ok").splitlines()) == 3
    assert {f.what for f in findings if f.what.startswith("journal ")} == {f"journal journal-{n}.db" for n in (1, 2, 3)}


@pytest.mark.slow
async def test_a_running_gateway_that_is_saturated_has_failed(tmp_path: Path) -> None:
    journal = tmp_path / "gateway-journal.db"
    with gateway(tmp_path, NOWHERE, min_free_bytes=2**60, drain_timeout_s=0.3):
        findings = await found(tmp_path, journal_path=journal)
    assert "accepts no images: less than min_free_bytes=" in said(findings, "gateway", "failed")
    assert "0: another free port" in said(findings, "DICOM port", "warning")


@pytest.mark.slow
async def test_a_running_gateway_whose_list_does_not_hold_this_machine_is_fine(tmp_path: Path) -> None:
    with gateway(tmp_path, NOWHERE, allowed_peers="CT1", drain_timeout_s=0.3) as (_, port):
        findings = await found(tmp_path, journal_path=tmp_path / "gateway-journal.db", scp_port=port)
    assert "listens; this machine is not in its allow-list" in said(findings, "DICOM port", "ok")


@pytest.mark.slow
async def test_a_running_gateway_is_asked_for_its_metrics(tmp_path: Path) -> None:
    metrics, journal = free_port(), tmp_path / "gateway-journal.db"
    with gateway(tmp_path, NOWHERE, metrics_port=metrics, drain_timeout_s=0.3):
        served = await found(tmp_path, journal_path=journal, metrics_port=metrics)
        not_served = await found(tmp_path, journal_path=journal, metrics_port=free_port())
    assert "is served" in said(served, "metrics port", "ok")
    assert "Restart the gateway with this setting" in said(not_served, "metrics port", "warning")


# --- TLS --------------------------------------------------------------------------------------------------------


def certificate(folder: Path, **when: Any) -> dict[str, Path]:
    issued = trustme.CA().issue_cert("localhost", **when)
    path = folder / "certificate.pem"
    path.touch(mode=0o600)
    issued.private_key_and_cert_chain_pem.write_to_path(path)
    return {"tls_cert": path}


async def test_a_certificate_is_good_until_then(tmp_path: Path) -> None:
    findings = await found(tmp_path, **certificate(tmp_path, not_after=datetime.now(UTC) + timedelta(days=90)))
    assert f"valid until {datetime.now(UTC) + timedelta(days=90):%Y-%m-%d}" in said(findings, "TLS", "ok")


async def test_a_certificate_that_ends_soon_is_a_warning(tmp_path: Path) -> None:
    findings = await found(tmp_path, **certificate(tmp_path, not_after=datetime.now(UTC) + timedelta(days=10)))
    assert "9 days left → Have" in said(findings, "TLS", "warning")
    assert "renewed, then send the gateway SIGHUP" in said(findings, "TLS", "warning")


async def test_an_expired_certificate_has_failed(tmp_path: Path) -> None:
    yesterday = datetime.now(UTC) - timedelta(days=1)
    times = {"not_before": yesterday - timedelta(days=9), "not_after": yesterday}
    findings = await found(tmp_path, **certificate(tmp_path, **times))
    assert "certificate has expired → Have" in said(findings, "TLS", "failed")


async def test_certificate_files_that_cannot_be_used_have_failed(tmp_path: Path) -> None:
    findings = await found(tmp_path, tls_cert=tmp_path / "none.pem")
    assert "No such file or directory → Give readable PEM files" in said(findings, "TLS", "failed")


async def test_a_key_of_the_certificate_that_others_read_is_a_warning(tmp_path: Path) -> None:
    settings = certificate(tmp_path)
    settings["tls_cert"].chmod(0o644)
    assert "chmod 600" in said(await found(tmp_path, **settings), "TLS", "warning")


@pytest.mark.slow
async def test_a_running_gateway_with_tls_answers_c_echo(tmp_path: Path) -> None:
    settings = certificate(tmp_path)
    with gateway(tmp_path, NOWHERE, drain_timeout_s=0.3, **settings) as (_, port):
        findings = await found(tmp_path, journal_path=tmp_path / "gateway-journal.db", scp_port=port, **settings)
    assert "answers C-ECHO" in said(findings, "DICOM port", "ok")


# --- the PACS ---------------------------------------------------------------------------------------------------


COUNTS_UNSEEN = "names no study of the last 30 days, so that its counts cannot be seen yet"
Answers = list[tuple[int, Dataset | None]]


def a_study(**counts: Any) -> tuple[int, Dataset]:
    """What a PACS says of a study."""
    ds = Dataset()
    ds.QueryRetrieveLevel, ds.StudyInstanceUID = "STUDY", "1.2.3"
    for name, value in counts.items():
        setattr(ds, f"NumberOfStudyRelated{name}", value)
    return 0xFF00, ds


@contextmanager
def stock_pacs(studies: Answers | None = None, **requirements: Any) -> Iterator[int]:
    """Stock pynetdicom that answers C-FIND with nothing, at STUDY level with these; its port."""
    ae = AE("PACS")
    ae.add_supported_context(Verification)
    ae.add_supported_context(StudyRootQueryRetrieveInformationModelFind)
    for name, value in requirements.items():
        setattr(ae, name, value)

    def handle_find(event: evt.Event) -> Iterator[tuple[int, Dataset | None]]:
        yield from (studies or ()) if event.identifier.QueryRetrieveLevel == "STUDY" else ()
        yield 0x0000, None

    scp: Any = ae.start_server(("127.0.0.1", 0), block=False, evt_handlers=[(evt.EVT_C_FIND, handle_find)])
    try:
        yield scp.server_address[1]
    finally:
        scp.shutdown()


async def test_a_pacs_that_answers_is_fine(tmp_path: Path) -> None:
    with stock_pacs() as port:
        findings = await found(tmp_path, pacs=f"PACS@127.0.0.1:{port}")
    assert "answers C-FIND from STORESCP" in said(findings, "PACS PACS", "ok")
    assert COUNTS_UNSEEN in said(findings, "PACS PACS", "ok")


async def test_a_pacs_that_counts_studies_is_told_and_its_list_of_them_not_read(tmp_path: Path) -> None:
    with stock_pacs([a_study(Series=2, Instances=7)] * 20_000) as port:
        findings = await found(tmp_path, pacs=f"PACS@127.0.0.1:{port}")
    assert "counts the series and images of a study" in said(findings, "PACS PACS", "ok")


@pytest.mark.parametrize(
    "studies",
    [
        [a_study()],
        [a_study(Series=2)],
        [a_study(Series="", Instances="")],
        [a_study(Series=3, Instances=2)],
        [(0xA700, None)],
    ],
    ids=["neither", "one", "empty", "impossible", "refused"],
)
async def test_a_pacs_that_does_not_count_studies_is_a_warning_with_what_follows_and_the_cure(
    tmp_path: Path, studies: Answers
) -> None:
    with stock_pacs(studies) as port:
        findings = await found(tmp_path, pacs=f"PACS@127.0.0.1:{port}")
    assert "answers C-FIND from STORESCP" in said(findings, "PACS PACS", "ok")
    assert "studies only idle or expected" in said(findings, "PACS PACS", "warning")
    (cure,) = [one.cure for one in findings if (one.what, one.state) == ("PACS PACS", "warning")]
    assert "NumberOfStudyRelatedSeries" in cure
    assert "SERVER_REQUIRED_SERIES" in cure
    assert not [one for one in findings if one.what == "PACS PACS" and one.state == "failed"]


@pytest.mark.parametrize(
    ("requirements", "problem", "cure"),
    [
        (
            {"require_calling_aet": ["OTHER"]},
            "Calling AE title",
            "allow STORESCP at this machine's address",
        ),
        ({"require_called_aet": True}, "Called AE title", "write the one that the PACS itself shows in GATEWAY_PACS"),
        ({"maximum_associations": 0}, "Local limit exceeded", "the PACS knows STORESCP"),
    ],
)
async def test_a_pacs_that_rejects_is_named_with_the_cure(
    tmp_path: Path, requirements: dict[str, Any], problem: str, cure: str
) -> None:
    with stock_pacs(**requirements) as port:
        findings = await found(tmp_path, pacs=f"WRONG@127.0.0.1:{port}")
    failures = said(findings, "PACS WRONG", "failed")
    assert problem in failures
    assert cure in failures


@pytest.mark.parametrize(
    ("requirements", "state", "words"),
    [
        ({"require_calling_aet": ["OTHER"]}, "ok", "this machine is not in its allow-list"),
        ({"require_called_aet": True}, "failed", "another AE title listens there"),
    ],
)
async def test_on_our_own_port_another_title_than_ours_has_failed(
    tmp_path: Path, requirements: dict[str, Any], state: State, words: str
) -> None:
    settings = load(GatewaySettings, {"journal_path": str(tmp_path / "journal.db"), "pacs_timeout_s": "2"})
    with stock_pacs(**requirements) as port:
        peer = Peer("STORESCP", "127.0.0.1", port)
        findings = await in_thread(partial(dicom, "DICOM port", settings, peer, of_ours=True), "dicom")
    assert words in said(findings, "DICOM port", state)


async def test_a_pacs_that_cannot_be_reached_is_named_with_the_cure(tmp_path: Path) -> None:
    findings = await found(tmp_path, pacs="A@127.0.0.1:9,B@nohost.invalid:104")
    assert "cannot be reached: Connection refused → Check that it runs" in said(findings, "PACS A", "failed")
    assert "no address belongs to the name nohost.invalid" in said(findings, "PACS B", "failed")


async def test_a_pacs_that_says_nothing_is_given_up_in_time(tmp_path: Path) -> None:
    with closing(socket.create_server(("127.0.0.1", 0))) as silent:
        port = silent.getsockname()[1]
        findings = await found(tmp_path, pacs=f"A@127.0.0.1:{port}", pacs_timeout_s=0.5)
    assert f"{port} is a DICOM port without TLS" in said(findings, "PACS A", "failed")


@pytest.mark.peer("dcmtk")
async def test_a_pacs_without_c_find_cannot_verify(tmp_path: Path) -> None:
    port = free_port()
    process = Process("storescp", ["storescp", "-v", str(port)], tmp_path)
    with running(process):
        wait_until_open(port)
        findings = await found(tmp_path, pacs=f"STORE@127.0.0.1:{port}")
    assert "answers C-ECHO" in said(findings, "PACS STORE", "ok")
    failures = said(findings, "PACS STORE", "failed")
    assert "does not offer Study Root C-FIND → Allow C-FIND from STORESCP" in failures
    assert "else no series becomes verified" in failures


@pytest.mark.peer("orthanc")
async def test_an_orthanc_that_does_not_know_us_is_named_with_the_cure(tmp_path: Path) -> None:
    port = free_port()
    with orthanc(tmp_path, free_port(), ae_title="OTHER", dicom_port=port):
        findings = await found(tmp_path, pacs=f"ORTHANC@127.0.0.1:{port}")
    assert "Orthanc: DicomModalities" in said(findings, "PACS ORTHANC", "failed")


def wait_until_open(port: int) -> None:
    while True:
        try:
            socket.create_connection(("127.0.0.1", port), 5).close()
        except ConnectionRefusedError:
            continue
        return


# --- the server -------------------------------------------------------------------------------------------------


async def test_an_older_server_cannot_tell_about_the_key(tmp_path: Path) -> None:
    with some_server(READY) as port:
        findings = await found(tmp_path, server_url=f"http://127.0.0.1:{port}")
    assert "is ready" in said(findings, "server", "ok")
    assert "the same time" in said(findings, "clock", "ok")
    assert "cannot be checked: the server answers HTTP 404" in said(findings, "key", "warning")


@pytest.mark.parametrize(
    ("says", "state", "told"),
    [
        ({}, "warning", "the server is before 0.2, this gateway {ours}: it is older → Upgrade the server"),
        ({"version": "0.1.0"}, "warning", "the server is 0.1.0, this gateway {ours}: it is older → Upgrade the server"),
        ({"version": "99.0"}, "warning", "the server is 99.0, this gateway {ours}: it is newer → Upgrade this gateway"),
        ({"version": version()}, "ok", "{ours}, the same as the server"),
    ],
)
async def test_a_server_of_another_version_is_named(
    tmp_path: Path, says: dict[str, str], state: State, told: str
) -> None:
    with some_server({"/health/ready": (200, {"status": "ready"} | says)}) as port:
        findings = await found(tmp_path, server_url=f"http://127.0.0.1:{port}")
    assert said(findings, "version", state).startswith(told.format(ours=version()))


@pytest.mark.parametrize("apart_s", [-10, 10])
async def test_clocks_that_are_apart_are_a_warning(tmp_path: Path, apart_s: float) -> None:
    with some_server(READY, apart_s) as port:
        findings = await found(tmp_path, server_url=f"http://127.0.0.1:{port}")
    told = said(findings, "clock", "warning")
    assert "s apart from the server's → Synchronize both" in told
    assert 8 <= int(told.split(" ")[0]) <= 11


@pytest.mark.parametrize(
    ("answer", "problem"),
    [
        ((503, {}), "its database does not → Run `python server.py check`"),
        ((404, {}), "it is not our server → Correct GATEWAY_SERVER_URL"),
        ((200, {"hello": "world"}), "it is not our server"),
    ],
)
async def test_a_server_that_is_not_ready_or_not_ours_has_failed(
    tmp_path: Path, answer: tuple[int, Any], problem: str
) -> None:
    with some_server({"/health/ready": answer}) as port:
        findings = await found(tmp_path, server_url=f"http://127.0.0.1:{port}")
    assert problem in said(findings, "server", "failed")
    assert not {"key", "clock"} & {finding.what for finding in findings}  # whose key would it be


async def test_a_servers_certificate_is_named_where_it_is_not_good(tmp_path: Path) -> None:
    authority = trustme.CA()
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("localhost").configure_cert(context)
    file = tmp_path / "ca.pem"
    authority.cert_pem.write_to_path(file)
    with some_server(READY, tls=context) as port:
        unknown = await found(tmp_path, server_url=f"https://localhost:{port}")
        known = await found(tmp_path, server_url=f"https://localhost:{port}", server_ca=file)
        other_name = await found(tmp_path, server_url=f"https://127.0.0.1:{port}", server_ca=file)
        clear = await found(tmp_path, server_url=f"http://localhost:{port}")
    assert "→ Put its authority into GATEWAY_SERVER_CA" in said(unknown, "server", "failed")
    assert "is ready" in said(known, "server", "ok")
    assert "a host that the certificate names" in said(other_name, "server", "failed")
    assert "begin GATEWAY_SERVER_URL with https://" in said(clear, "server", "failed")


async def test_an_authority_that_cannot_be_read_has_failed(tmp_path: Path) -> None:
    findings = await found(tmp_path, server_url="https://localhost:9", server_ca=tmp_path / "none.pem")
    assert "GATEWAY_SERVER_CA=" in said(findings, "server", "failed")
    assert "→ Give a readable PEM file" in said(findings, "server", "failed")


@pytest.mark.slow
async def test_a_key_is_judged_by_its_scopes(tmp_path: Path) -> None:
    database = f"sqlite+aiosqlite:///{tmp_path}/series.db"
    with server(tmp_path, DATABASE_URL=database) as (_, url):

        def key(*scopes: str) -> str:
            flags = [part for scope in scopes for part in ("--scope", scope)]
            return str(answer(database, "keys", "create", "-".join(scopes).replace(":", "-"), *flags)["key"])

        without = await found(tmp_path, server_url=url)
        assert "this machine" in said(without, "key", "ok")
        both, write, read = key("series:write", "series:read"), key("series:write"), key("series:read")
        lines = {k: await found(tmp_path, server_url=url, api_key=k) for k in (both, write, read, "wrong")}
        asking = await found(tmp_path, server_url=url, api_key=write, pacs="A@127.0.0.1:9")
        none = await found(tmp_path, server_url=url)
    assert "with series:read and series:write" in said(lines[both], "key", "ok")
    assert "the key lacks series:read, which is needed for GATEWAY_PACS" in said(lines[write], "key", "warning")
    assert "the key lacks series:read →" in said(asking, "key", "failed")
    assert "the key lacks series:write → On the server: `python server.py keys create" in said(
        lines[read], "key", "failed"
    )
    assert "the server does not know the key" in said(lines["wrong"], "key", "failed")
    assert "the server needs a key" in said(none, "key", "failed")
    assert "GATEWAY_API_KEY_FILE=FILE" in said(none, "key", "failed")


async def test_a_key_file_that_cannot_be_read_has_failed(tmp_path: Path) -> None:
    findings = await found(tmp_path, api_key_file=tmp_path / "none")
    assert "No such file or directory → Give a readable file with nothing but the key" in said(
        findings, "server", "failed"
    )


# --- disk and journal -------------------------------------------------------------------------------------------


async def test_a_folder_that_is_missing_read_only_or_full_has_failed(tmp_path: Path) -> None:
    missing = said(await found(tmp_path, journal_path="/nonexistent/j.db"), "journal", "failed")
    assert "/nonexistent does not exist → Make the folder, or change GATEWAY_JOURNAL_PATH" in missing
    read_only = said(await found(tmp_path, journal_path="/proc/j.db"), "journal", "failed")
    assert "/proc cannot be written" in read_only
    assert "Let the user that this runs as write to /proc" in read_only
    full = said(await found(tmp_path, min_free_bytes=2**60), "journal", "failed")
    assert "nothing is accepted → Free some space" in full


@pytest.mark.peer("tmpfs")
async def test_a_journal_in_memory_is_a_warning(tmp_path: Path) -> None:
    findings = await found(tmp_path, journal_path="/dev/shm/check-journal.db")  # noqa: S108 - not written
    assert "tmpfs: memory, and gone after a reboot → Use a file on a local disk" in said(findings, "journal", "warning")


async def test_a_journal_of_a_newer_version_or_a_corrupt_one_has_failed(tmp_path: Path) -> None:
    path = tmp_path / "journal.db"
    with closing(sqlite3.connect(path)) as connection:
        connection.execute("PRAGMA user_version = 99")
        connection.execute("CREATE TABLE x (y)")
    path.chmod(0o600)
    newer = said(await found(tmp_path), "journal", "failed")
    assert "schema 99 was made by a newer version" in newer
    assert "Run the version that wrote it until the journal is empty" in newer
    path.write_bytes(b"not a database, whatever its name says" * 100)
    corrupt = said(await found(tmp_path), "journal", "failed")
    assert "is not a sound database: file is not a database → Copy it and its -wal file first" in corrupt


@pytest.mark.slow
async def test_looking_at_a_journal_at_rest_leaves_nothing_beside_it(tmp_path: Path) -> None:
    dead_letters(tmp_path, 1)
    before = {path.name for path in tmp_path.iterdir()}
    for workers in (1, 2):  # whose it is, and left out
        findings = await found(tmp_path, journal_path=tmp_path / "gateway-journal.db", workers=workers)
        assert ("1 reports were refused" in str(findings)) == (workers == 1)
    assert {path.name for path in tmp_path.iterdir()} == before


async def test_dead_letters_and_a_journal_that_others_read_are_warnings(tmp_path: Path) -> None:
    dead_letters(tmp_path, 1)
    path = tmp_path / "gateway-journal.db"
    path.chmod(0o644)
    warnings = said(await found(tmp_path, journal_path=path), "journal", "warning")
    assert "1 reports were refused by the server for good → `python client.py dead-letters list`" in warnings
    assert f"chmod 600 {path}" in warnings


@pytest.mark.slow
async def test_journals_of_more_workers_than_now_are_named(tmp_path: Path) -> None:
    with gateway(tmp_path, NOWHERE, journal_path="journal-3.db", drain_timeout_s=0.2) as (_, port):
        send(port, new_series(1))
    two = said(await found(tmp_path, workers=2), "journals left out", "warning")
    assert "journal-3.db holds undelivered images" in two
    assert f"--workers 1 --journal-path {tmp_path}/journal-3.db drain" in two
    assert said(await found(tmp_path, workers=3), "journals left out", "warning") == ""
