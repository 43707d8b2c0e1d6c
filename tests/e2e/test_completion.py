"""Completeness with evidence: a real Orthanc sends, is asked, and gives what it did not send."""

import json
import time
from pathlib import Path

import httpx
import pydicom
import pytest
from pydicom.uid import EnhancedMRImageStorage

from bench import completion
from bench.record import link, run, wait
from bench.rig.peers import free_port, orthanc
from bench.rig.processes import gateway, server
from bench.rig.senders import synthetic_series
from bench.simulation import Candidate, judge
from bench.traces import Event, read_trace, synthetic, write_trace
from bench.verified import trio, upload, wait_for_row


def events(http: httpx.Client, uid: str) -> list[str]:
    return [entry["Event"] for entry in http.get(f"/series/{uid}/timeline").json()["events"]]


@pytest.mark.peer("orthanc")
def test_a_whole_series_is_verified_and_the_timeline_says_why(tmp_path: Path) -> None:
    with trio(tmp_path) as (pacs, http):
        uid, ids = upload(pacs, 30)
        pacs.send(ids)
        record = wait_for_row(http, uid, NumInstances=30, Verdict="verified")
        assert (record["ExpectedInstances"], record["ExpectedFrom"], record["Missing"]) == (30, "pacs", 0)
        assert str(record["Basis"]).startswith("ORTHANC has said 30 for ")
        told = events(http, uid)
        assert (told[0], told[-2:]) == ("association.joined", ["series.reported", "report.stored"])
        told = [event for event in told[1:-2] if event != "series.idle"]  # it may pass before the count has stood
        assert set(told) == {"images.arrived", "images.counted", "pacs.answered"}  # several where the sending paused
        assert http.get(f"/series/{uid}/instances").json()["SOPInstanceUIDs"]


@pytest.mark.slow
@pytest.mark.peer("orthanc")
def test_a_series_held_back_is_not_verified_before_the_rest_came(tmp_path: Path) -> None:
    with trio(tmp_path, idle_max_s=1, missing_timeout_s=1) as (pacs, http):
        uid, ids = upload(pacs, 30)
        pacs.send(ids[:20])
        record = wait_for_row(http, uid, NumInstances=20, Verdict="idle")
        assert (record["Verdict"], record["ExpectedInstances"], record["Missing"]) == ("idle", 30, 10)
        pacs.send(ids[20:])
        record = wait_for_row(http, uid, NumInstances=30, Verdict="verified")
        assert (record["Missing"], record["FalseCompletions"]) == (0, 1)
        assert "verdict.contradicted" in events(http, uid)
        verdicts = {c["Verdict"]: (c["Series"], c["False"]) for c in http.get("/completions").json()["completions"]}
        assert verdicts == {"idle": (1, 1), "verified": (1, 0)}


@pytest.mark.slow
@pytest.mark.peer("orthanc")
@pytest.mark.parametrize("how", ["get", "move"])
def test_images_that_were_never_sent_are_fetched_and_only_those(tmp_path: Path, how: str) -> None:
    trace = tmp_path / "trace.jsonl"
    with trio(tmp_path, fetch_missing=how, trace_path=trace, idle_timeout_s=0.2) as (pacs, http):
        uid, ids = upload(pacs, 30)
        pacs.send(ids[:20])
        record = wait_for_row(http, uid, NumInstances=30, Verdict="verified")
        assert record["Revision"] == 1
        known = http.get(f"/series/{uid}/instances").json()["SOPInstanceUIDs"]
    recorded = [event.sop for event in read_trace(trace) if event.event == "image"]
    assert set(recorded) <= set(known)
    assert len(recorded) == (20 if how == "get" else 30)  # C-MOVE comes by the SCP


@pytest.mark.slow
@pytest.mark.peer("orthanc")
def test_two_gateways_with_half_a_series_each_make_one_verified_row(tmp_path: Path) -> None:
    port = free_port()
    options = {"pacs": f"ORTHANC@127.0.0.1:{port}", "idle_max_s": 1, "min_free_bytes": 0}
    for name in ("one", "two", "orthanc"):
        (tmp_path / name).mkdir()
    with (
        server(tmp_path) as (_, url),
        gateway(tmp_path / "one", url, **options) as (_, first),
        gateway(tmp_path / "two", url, **options) as (_, second),
        orthanc(tmp_path / "orthanc", first, dicom_port=port) as pacs,
        httpx.Client(base_url=url) as http,
    ):
        pacs.know("SECOND", "STORESCP", second)
        uid, ids = upload(pacs, 40)
        pacs.send(ids[:20])
        pacs.send(ids[20:], to="SECOND")
        record = wait_for_row(http, uid, NumInstances=40, Verdict="verified")
        assert (record["ExpectedInstances"], record["FalseCompletions"]) == (40, 0)


@pytest.mark.slow
def test_foreign_traces_are_judged(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_trace(tmp_path / "site.jsonl", synthetic(7, 2))
    write_trace(tmp_path / "other.jsonl", synthetic(8, 1))
    assert completion.main(["--traces", str(tmp_path)]) == 0
    said = capsys.readouterr().out.splitlines()
    assert said[-1].startswith("completion: default adaptive false=")
    lines = [line.strip("| ").split(" | ") for line in said[said.index(f"traces of {tmp_path}:") :] if " s |" in line]
    rows = {line[0]: int(line[-1]) for line in lines}
    assert rows["site"] + rows["other"] == rows["**all**"] == rows["**adaptive**"]
    assert any(line.startswith("completion: studies, ours: false=") for line in said)


@pytest.mark.parametrize(
    ("line", "problem"),
    [
        ("{", "Expecting property name"),
        ('{"t": 1, "event": "image"}', "missing 2 required"),
        ('{"t": 1, "event": "gone", "association": 1, "ae": "A"}', "it has to be image, opened, released or aborted"),
        ('{"t": 1, "event": "image", "association": 1, "ae": "A"}', "an image without series or sop"),
        ('{"t": "1", "event": "opened", "association": 1, "ae": "A"}', "t is not a number"),
        ('{"t": NaN, "event": "opened", "association": 1, "ae": "A"}', "t is not a number"),
        ('{"t": 1, "event": "opened", "association": [], "ae": "A"}', "association is not a whole number"),
        ('{"t": 1, "event": "opened", "association": 1, "ae": null}', "ae is not text"),
        ("[]", "has no attribute"),
        ('{"t": -1, "event": "opened", "association": 1, "ae": "A"}', "order the lines by t"),
    ],
)
def test_a_bad_trace_is_named_with_its_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], line: str, problem: str
) -> None:
    good = json.dumps({"t": 0, "event": "opened", "association": 1, "ae": "A"})
    (tmp_path / "site.jsonl").write_text(f"{good}\n{line}\n")
    assert completion.main(["--traces", str(tmp_path)]) == 1
    said = " ".join(capsys.readouterr().out.split())
    assert problem in said
    assert "site.jsonl:2" in said.replace(" ", "")


def test_the_simulation_counts_what_a_later_image_contradicts() -> None:
    def image(t: float, sop: str) -> Event:
        return Event(t, "image", 1, "CT1", "CT", "1.2", sop)

    run = [Event(0.0, "opened", 1, "CT1"), image(0.0, "1"), image(4.0, "2"), image(10.0, "3")]
    for seconds, false, latency_s in ((1, 2, 1.0), (5, 1, 5.0), (60, 0, 60.0)):
        outcome = judge([run], Candidate("fixed", completion.fixed(seconds)))
        assert (outcome.series, outcome.false, outcome.latencies_s) == (1, false, [latency_s])


@pytest.mark.slow
@pytest.mark.peer("dcmtk")
def test_bytes_that_come_more_slowly_than_the_time_out_keep_their_series_open(tmp_path: Path) -> None:
    small, big = synthetic_series(2)
    big.Rows = big.Columns = 1024
    big.PixelData = bytes(2 * 1024 * 1024)
    files = [str(tmp_path / f"{n}.dcm") for n in range(2)]
    for ds, file in zip((small, big), files, strict=True):
        pydicom.dcmwrite(file, ds, enforce_file_format=True)
    settings = {"idle_policy": "fixed", "idle_timeout_s": 0.4, "min_free_bytes": 0}
    with (
        server(tmp_path) as (_, url),
        gateway(tmp_path, url, **settings) as (_, port),
        httpx.Client(base_url=url) as http,
    ):
        with link(port, lambda n: time.sleep(n / 1_000_000)) as slow:  # the big one takes two seconds
            wait(run(slow, files))
        record = wait_for_row(http, str(small.SeriesInstanceUID))
        assert (record["NumInstances"], record["Revision"], record["Verdict"]) == (2, 1, "idle")


@pytest.mark.slow
@pytest.mark.peer("dcmtk")
def test_one_enhanced_multi_frame_instance_is_a_series(tmp_path: Path) -> None:
    (ds,) = synthetic_series(1)
    ds.SOPClassUID, ds.NumberOfFrames = EnhancedMRImageStorage, 40
    ds.PixelData = bytes(128 * 40)
    pydicom.dcmwrite(tmp_path / "enhanced.dcm", ds, enforce_file_format=True)
    with (
        server(tmp_path) as (_, url),
        gateway(tmp_path, url, min_free_bytes=0) as (_, port),
        httpx.Client(base_url=url) as http,
    ):
        wait(run(port, [str(tmp_path / "enhanced.dcm")]))
        record = wait_for_row(http, str(ds.SeriesInstanceUID))
        assert (record["NumInstances"], record["Revision"], record["Verdict"]) == (1, 1, "idle")
