"""Patients with marked names, through every path and fault: nothing that is written or exported shows them."""

import contextlib
import json
import re
import socket
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest
from pydicom.dataset import Dataset
from pydicom.sequence import Sequence

from bench.rig import warm
from bench.rig.otlp import sink
from bench.rig.processes import ROOT, Process, running, start_gateway, start_server, without_settings
from bench.rig.senders import associate_rq
from tests.rig.foreign_pacs import foreign_pacs, match
from tests.rig.sending import association, new_series, send

pytestmark = pytest.mark.slow
MARK = "QZMARK"


TEXTS = ("SeriesDescription", "ProtocolName", "StationName", "Manufacturer", "ManufacturerModelName")


def marked(count: int, **elements: str) -> list[Dataset]:
    """A series of a patient of whom everything is marked."""
    series = new_series(count)
    for ds in series:
        ds.PatientName, ds.PatientID = f"{MARK}^Name", f"{MARK}-ID"
        ds.AccessionNumber, ds.StudyDescription = f"{MARK}ACC", f"{MARK} study"
        ds.ReferringPhysicianName = f"{MARK}^Doctor"
        item = Dataset()
        item.RequestedProcedureID = f"{MARK}PROC"
        ds.RequestAttributesSequence = Sequence([item])
        for keyword, value in elements.items():
            setattr(ds, keyword, value)
    return series


def clean(*outputs: str | bytes) -> None:
    """Nothing marked is in any of these."""
    for output in outputs:
        text = output.decode("utf-8", "replace") if isinstance(output, bytes) else output
        where = text.upper().find(MARK)
        assert where < 0, text[max(0, where - 300) : where + 100]


def said(*processes: Process) -> str:
    return "\n".join(line for process in processes for line in process.lines)


def command(folder: Path, *arguments: str, **environment: str) -> str:
    words = [sys.executable, str(ROOT / arguments[0]), *arguments[1:]]
    done = warm.run(words, cwd=folder, env=without_settings() | environment)
    return done.stdout + done.stderr


@contextmanager
def talkative_pacs() -> Iterator[int]:
    """A PACS whose answers name the patient, and whose refusals do."""

    def find(ds: Dataset) -> Iterator[tuple[int, Dataset | None]]:
        yield match(ds, PatientName=f"{MARK}^Pacs", NumberOfSeriesRelatedInstances=f"{MARK}")
        failed = Dataset()
        failed.Status, failed.ErrorComment = 0xC001, f"{MARK} is not to be told"
        yield failed, None  # type: ignore[misc]

    with foreign_pacs(find) as port:
        yield port


def hostile_sends(port: int) -> None:
    """Images that are refused, headers that break off, and bytes that are no DICOM."""
    for broken in (
        marked(1, StudyInstanceUID=""),
        marked(1, SpecificCharacterSet="ISO 2022 IR 87"),
        marked(1, SpecificCharacterSet=f"{MARK}"),
        marked(1, PatientID=f"{MARK}" + "X" * 500),
    ):
        with association(port, broken) as assoc:
            assoc.send_c_store(broken[0])
    for garbage in (f"{MARK}^Name".encode() * 100, associate_rq() + f"{MARK}".encode() * 100):
        with socket.create_connection(("127.0.0.1", port), 10) as sock:
            sock.sendall(garbage)
            sock.shutdown(socket.SHUT_WR)
            sock.settimeout(60)
            while sock.recv(4096):
                pass


@pytest.mark.filterwarnings("ignore::UserWarning:pydicom")  # of values that are meant to be wrong
def test_a_gateway_tells_nobody_of_a_patient(tmp_path: Path) -> None:
    with sink() as collector, talkative_pacs() as pacs:
        environment = collector.environment | {
            "GATEWAY_IDLE_TIMEOUT_S": "0.4",
            "GATEWAY_METRICS_PORT": "0",
            "GATEWAY_PACS": f"SCU@127.0.0.1:{pacs}",
            "GATEWAY_FETCH_MISSING": "get",
            "GATEWAY_TRACE_PATH": str(tmp_path / "trace.jsonl"),
            "GATEWAY_DRAIN_TIMEOUT_S": "1",
        }
        process, port = start_gateway(tmp_path, "http://127.0.0.1:9", environment=environment)  # no server
        send(port, marked(3))
        hostile_sends(port)
        process.wait_for_event("report.delayed")
        process.kill()
        http, url = start_server(tmp_path, SERVER_MAX_BODY_BYTES="4096", **collector.environment)
        with running(http):
            again, port = start_gateway(tmp_path, url, environment=environment)
            with running(again):
                again.wait_for_event("report.delivered")
                send(port, marked(3, **dict.fromkeys(TEXTS, "x" * 1000)))  # its report is too long for this server
                again.wait_for_event("report.rejected")
                send(port, first := marked(1))
                again.wait_for_event("report.delivered", series_instance_uid=first[0].SeriesInstanceUID)
                first[0].PatientID = f"{MARK}-OTHER"
                first[0].SOPInstanceUID += ".1"
                send(port, first)
                again.wait_for_event("series.conflicted")
                (served,) = again.events("metrics.served")
                scraped = httpx.get(f"http://127.0.0.1:{served['port']}/metrics", trust_env=False).text
                state = httpx.get(f"{url}/gateways", trust_env=False).json()
                beside = [
                    command(tmp_path, "client.py", *arguments, **environment | {"GATEWAY_SERVER_URL": url})
                    for arguments in (["status"], ["dead-letters", "list", "--json"], ["check"])
                ]
                send(port, marked(2))  # drained
    output = said(process, again, http)
    for event in ("instance.refused", "association.violated", "report.delayed", "report.rejected", "series.stored"):
        assert event in output
    assert '"verdict": "drained"' in output
    assert {span.name for span in collector.spans()} >= {"series", "receive", "store"}
    for gateway in state["gateways"]:
        gateway["State"].pop("Arriving")  # names the patient to who may read series
    clean(output, scraped, json.dumps(state), *beside, *collector.bodies, (tmp_path / "trace.jsonl").read_text())


HEADERS = [
    {"Authorization": f"Bearer {MARK}"},
    {"Authorization": f"Basic {MARK}"},
    {"Cookie": f"series-gateway-session={MARK}"},
    {"User-Agent": MARK, "X-Request-ID": MARK, "traceparent": MARK},
    {"Host": MARK},
]
QUESTIONS = [
    f"/series?PatientID={MARK}",
    f"/series?PatientID={MARK}%00",
    f"/series?Modality={MARK}{MARK}{MARK}",
    f"/series/{MARK}",
    f"/{MARK}/nowhere",
    f"/dicom-web/studies?PatientName={MARK}*",
    f"/dicom-web/series?{MARK}=1",
    f"/dicom-web/studies/{MARK}/series",
    f"/overview/series?search={MARK}",
    f"/changes?since={MARK}",
    f"/web/{MARK}.js",
    f"/gateways/{MARK}",
]
REPORT = {
    "SeriesInstanceUID": "1.2.3.4",
    "PatientID": f"{MARK}-ID",
    "PatientName": f"{MARK}^Name",
    "StudyInstanceUID": "1.2.3",
    "NumInstances": 3,
}
BODIES = [
    json.dumps(REPORT),
    json.dumps(REPORT | {"PatientID": f"{MARK}-OTHER"}),  # a conflict
    json.dumps(REPORT | {"PatientID": MARK * 100}),
    json.dumps(REPORT | {"PatientName": [MARK]}),
    json.dumps(REPORT | {"SeriesInstanceUID": f"{MARK}\\"}),
    json.dumps(REPORT | {MARK: 1}),
    json.dumps(REPORT | {"Attributes": {MARK: [1]}, "Timeline": [{"At": MARK, "Event": MARK}]}),
    json.dumps(REPORT)[:-5],
    f'"{MARK}"',
    MARK,
    MARK * 5000,
]


def ask_everything(url: str) -> None:
    with httpx.Client(base_url=url, trust_env=False, timeout=120) as http:
        for body in BODIES:
            for method, path in (("POST", "/series"), ("POST", "/session"), ("PUT", f"/gateways/{MARK}")):
                http.request(method, path, content=body, headers={"Content-Type": "application/json"})
        (conflict,) = http.get("/conflicts").json()["conflicts"]
        http.post(f"/conflicts/{conflict['Digest']}", json={"Resolution": MARK})
        http.post(f"/conflicts/{conflict['Digest']}", json={"Resolution": "correct"})
        for question in QUESTIONS:
            http.get(question)
            http.request(MARK, question)
        for headers in HEADERS:
            http.get("/series", headers=headers)


def test_a_server_writes_down_nothing_of_a_patient(tmp_path: Path) -> None:
    with sink() as collector:
        http, url = start_server(
            tmp_path,
            SERVER_AUDIT_PATH=str(tmp_path / "audit.jsonl"),
            SERVER_MAX_BODY_BYTES="20000",
            **collector.environment,
        )
        with running(http):
            ask_everything(url)
            scraped = httpx.get(f"{url}/metrics", trust_env=False).text
            environment = {"DATABASE_URL": f"sqlite+aiosqlite:///{tmp_path}/series.db"}
            beside = command(tmp_path, "server.py", "check", "--url", url, **environment)
    audit = (tmp_path / "audit.jsonl").read_text()
    assert len(audit.splitlines()) > len(QUESTIONS) + len(BODIES)
    assert "report.refused" in said(http)
    clean(said(http), scraped, beside, audit, *collector.bodies)


def test_a_bug_of_the_servers_shows_its_place_and_no_patient(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "uvicorn", "--port", "0", "tests.rig.programs.broken_server:app"]
    environment = {"DATABASE_URL": f"sqlite+aiosqlite:///{tmp_path}/series.db", "PYTHONPATH": str(ROOT)}
    with running(Process("server", command, tmp_path, **environment)) as process:
        url = process.wait_for(lambda line: line.split("running on ")[1].split()[0] if "running on" in line else None)
        assert httpx.get(f"{url}/series/1.2.3", trust_env=False).status_code == 500
        line = process.wait_for(lambda line: line if "Exception in ASGI" in line else None)
    assert re.match(r"ValueError at \S*broken_server\.py:\d+ < ", json.loads(line)["exception"][0])
    clean(said(process))


@pytest.mark.parametrize("workers", ["1", "2"])
def test_a_bug_of_the_gateways_shows_its_place_and_no_patient(tmp_path: Path, workers: str) -> None:
    command = [sys.executable, "-m", "tests.rig.programs.broken_gateway", "--scp-port", "0", "--workers", workers]
    process = Process("gateway", command, tmp_path, PYTHONPATH=str(ROOT))
    port = int(process.wait_for_event("gateway.started")["port"])
    with pytest.raises((AssertionError, AttributeError)):  # no answer
        send(port, marked(1))
    failed = process.wait_for_event("process.failed")
    assert any(re.match(r"ValueError at \S*broken_gateway\.py:\d+ < ", place) for place in failed["exception"])
    process.kill()
    clean(said(process))


@contextmanager
def talkative_server(answer: bytes) -> Iterator[str]:
    """Answers every request with these bytes, and closes."""
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def serve() -> None:
            with contextlib.suppress(OSError):
                while True:
                    peer, _ = listener.accept()
                    with peer:
                        peer.recv(65536)
                        peer.sendall(answer)

        thread = threading.Thread(target=serve)
        thread.start()
        try:
            yield f"http://127.0.0.1:{listener.getsockname()[1]}"
        finally:
            listener.shutdown(socket.SHUT_RDWR)
            thread.join()


def http_answer(status: str, body: str) -> bytes:
    head = f"HTTP/1.1 {status}\r\nContent-Type: application/json\r\nConnection: close\r\n"
    return f"{head}Content-Length: {len(body)}\r\n\r\n{body}".encode()


TOO_LARGE = "the body has more than 5 bytes: SERVER_MAX_BODY_BYTES takes no larger one"  # as api/patience.py says it
REFUSAL = json.dumps({"detail": [{"loc": ["body", MARK], "msg": f"{MARK} \ud800", "type": MARK}]})


@pytest.mark.parametrize(
    ("answer", "event"),
    [
        (http_answer("422 no", REFUSAL), "report.rejected"),
        (http_answer(f"413 {MARK} is too long", json.dumps({"detail": f"{TOO_LARGE} {MARK}"})), "report.rejected"),
        (http_answer(f"413 {MARK} is too long", json.dumps({"detail": MARK})), "report.delayed"),
        (http_answer(f"413 {MARK} is too long", f'"{MARK}"'), "report.delayed"),
        (http_answer(f"500 {MARK}", MARK), "report.delayed"),
        (http_answer("200 OK", f'"{MARK}"'), "report.delayed"),
        (f"{MARK}^Name\r\n\r\n".encode(), "report.delayed"),
        (f"HTTP/1.1 200 OK\r\n{MARK}\r\n\r\n".encode(), "report.delayed"),
    ],
    ids=["422", "413", "413 of a stranger", "413 of a proxy", "500", "200", "status line", "header"],
)
def test_what_a_server_says_of_a_patient_goes_no_further(tmp_path: Path, answer: bytes, event: str) -> None:
    with talkative_server(answer) as url:
        environment = {"GATEWAY_IDLE_TIMEOUT_S": "0.4", "GATEWAY_DRAIN_TIMEOUT_S": "0.2", "GATEWAY_METRICS_PORT": "0"}
        process, port = start_gateway(tmp_path, url, environment=environment)
        with running(process):
            send(port, marked(1))
            process.wait_for_event(event)
            beside = [command(tmp_path, "client.py", *words) for words in (["status"], ["dead-letters", "list"])]
        assert process.popen.returncode == 0
    clean(said(process), *beside)


def test_the_marks_would_be_found(tmp_path: Path) -> None:
    """Where they are meant to be, they are: this test looks for the right thing."""
    http, url = start_server(tmp_path)
    with running(http):
        process, port = start_gateway(tmp_path, url, environment={"GATEWAY_IDLE_TIMEOUT_S": "0.4"})
        with running(process):
            send(port, marked(1))
            process.wait_for_event("report.delivered")
            rows = httpx.get(f"{url}/series", trust_env=False).text
    with pytest.raises(AssertionError):
        clean(rows)
