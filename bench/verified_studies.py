"""How soon is a study verified? A real Orthanc sends over two gateways; `python -m bench.verified_studies`.

Twenty studies of five series, series by series to one gateway or the other. One gateway is killed in the middle and
started again; of the last study, one series is held back. The PACS is trusted from the start, as it is after ten series
and ten studies that it held whole: to learn the latter takes a silence a study. Ends with the studies that were
verified, those told before their last image, and the median from a study's last image to its verdict.
"""

import argparse
import sqlite3
import statistics
import sys
import tempfile
import time
from collections.abc import Sequence
from contextlib import closing
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NamedTuple

import httpx
from pydicom.uid import generate_uid

from bench.rig.peers import Orthanc, free_port, orthanc
from bench.rig.processes import Process, running, server, start_gateway
from bench.rig.senders import synthetic_image
from gateway.open_series import TRUSTED_AFTER as SERIES_UNTIL_TRUSTED
from storage.study_rules import TRUSTED_AFTER

SERIES, IMAGES = 5, 40  # of a study, of a series
PRIMING = 5  # studies of which the gateways learn for how long to wait
HELD_BACK_S = 30.0
WITHIN_S = 600.0  # beyond which something is wrong


class Study(NamedTuple):
    """A study that Orthanc holds."""

    uid: str
    series: list[list[str]]
    """Orthanc's ids of the images of each series."""


class Result(NamedTuple):
    """What became of the studies."""

    studies: int
    verified: int
    early: int
    """Studies of which a verdict was told before all images were there."""
    waits_s: list[float]
    held_back: str | None
    """The verdict while a series was held back."""


def upload(pacs: Orthanc, images: int) -> Study:
    """Put a new study into Orthanc."""
    uid = generate_uid()
    series = []
    for series_uid in [generate_uid() for _ in range(SERIES)]:
        made = [synthetic_image(uid, series_uid, generate_uid()) for _ in range(images)]
        series.append([pacs.upload_dataset(ds) for ds in made])
    return Study(uid, series)


class Trial:
    """A server, an Orthanc, and two gateways that may ask it."""

    def __init__(  # noqa: PLR0913, PLR0917 - what it is made of
        self, folder: Path, url: str, http: httpx.Client, pacs: Orthanc, pacs_port: int, images: int
    ) -> None:
        self._folder = folder
        self._url = url
        self._http = http
        self._pacs = pacs
        self._images = images
        self._settings = {"GATEWAY_PACS": f"ORTHANC@127.0.0.1:{pacs_port}", "GATEWAY_MIN_FREE_BYTES": "0"}
        self.gateways = {name: self._start(name) for name in ("ONE", "TWO")}

    def _start(self, name: str) -> Process:
        folder = self._folder / name
        folder.mkdir(exist_ok=True)
        environment = {**self._settings, "GATEWAY_ID": name}
        process, port = start_gateway(folder, self._url, environment=environment)
        self._pacs.know(name, "STORESCP", port)
        return process

    def kill(self, name: str) -> None:
        """End a gateway by SIGKILL, and start it again on its journal."""
        self.gateways[name].kill()
        self.gateways[name] = self._start(name)

    def send(self, study: Study, series: Sequence[int]) -> None:
        for n in series:
            self._pacs.send(study.series[n], to=("ONE", "TWO")[n % 2])

    def record(self, study: Study) -> dict[str, Any]:
        answer = self._http.get(f"/studies/{study.uid}")
        return answer.json() if answer.status_code == 200 else {}

    def wait_for(self, studies: Sequence[Study], wanted: str) -> list[dict[str, Any]]:
        """Return the rows of studies once each has all images and, of `wanted` "verified", that verdict."""
        deadline, rows = time.monotonic() + WITHIN_S, []
        while time.monotonic() < deadline:
            rows = [self.record(study) for study in studies]
            complete = [
                row for row in rows if row.get("NumInstances") == SERIES * self._images and not row["Unsettled"]
            ]
            if len([row for row in complete if wanted != "verified" or row["Verdict"] == wanted]) == len(studies):
                return rows
            time.sleep(0.2)
        raise RuntimeError(f"not {wanted} within {WITHIN_S:g} s: {rows}")

    def trust(self) -> None:
        """Let the server and both gateways trust the PACS, as they do after studies and series that it held whole.

        A gateway learns that only of series that take longer to come than the PACS takes to answer.
        """
        for name, gateway in self.gateways.items():
            gateway.kill()
            with closing(sqlite3.connect(self._folder / name / "gateway-journal.db", timeout=60)) as journal, journal:
                journal.execute("INSERT OR REPLACE INTO pacs VALUES ('ORTHANC', ?)", (SERIES_UNTIL_TRUSTED,))
            self.gateways[name] = self._start(name)
        with closing(sqlite3.connect(self._folder / "series.db", timeout=60)) as database, database:
            now = datetime.now(UTC).strftime("%Y-%m-%d %H:%M:%S.%f")
            insert = 'INSERT OR REPLACE INTO study_pacs ("PACS", "Stored", "Trust", "UpdatedAt") VALUES (?, ?, ?, ?)'
            for stored in (False, True):
                database.execute(insert, ("ORTHANC", stored, TRUSTED_AFTER, now))

    def told(self) -> dict[str, list[dict[str, Any]]]:
        """Return what was told of each study, in order."""
        changes = self._http.get("/changes", params={"subject": "study", "limit": 1000}).json()["changes"]
        found: dict[str, list[dict[str, Any]]] = {}
        for change in changes:
            found.setdefault(change["StudyInstanceUID"], []).append(change)
        return found

    def run(self, count: int, held_back_s: float) -> Result:
        """Send the studies, and see what is told of each."""
        priming = [upload(self._pacs, self._images) for _ in range(PRIMING)]
        for study in priming:
            self.send(study, range(SERIES))
        self.wait_for(priming, "settled")
        self.trust()
        studies = [upload(self._pacs, self._images) for _ in range(count)]
        for n, study in enumerate(studies[:-1]):
            self.send(study, range(2))
            if n == count // 2:
                self.kill("ONE")
            self.send(study, range(2, SERIES))
        self.send(studies[-1], range(SERIES - 1))
        time.sleep(held_back_s)
        held_back = self.record(studies[-1]).get("Verdict")
        self.send(studies[-1], [SERIES - 1])
        rows = self.wait_for(studies, "verified")
        told = self.told()
        early = [s.uid for s in studies if any(one["NumInstances"] < SERIES * self._images for one in told[s.uid])]
        waits = [_s(told[row["StudyInstanceUID"]][-1]["At"]) - _s(row["LastReceivedAt"]) for row in rows]
        return Result(count, sum(row["Verdict"] == "verified" for row in rows), len(early), waits, held_back)


def _s(at: str) -> float:
    return datetime.fromisoformat(at).timestamp()


def trial(count: int, held_back_s: float, images: int = IMAGES) -> Result:
    """Do it once, with processes of its own."""
    pacs_port = free_port()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        with (
            server(folder) as (_, url),
            orthanc(folder, free_port(), dicom_port=pacs_port) as pacs,
            httpx.Client(base_url=url, timeout=60, trust_env=False) as http,
        ):
            one = Trial(folder, url, http, pacs, pacs_port, images)
            try:
                return one.run(count, held_back_s)
            finally:
                for process in one.gateways.values():
                    with running(process):
                        pass


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the trial; exit code 0 if every study was verified and none was told early."""
    parser = argparse.ArgumentParser(prog="python -m bench.verified_studies", description=__doc__)
    parser.add_argument("--studies", type=int, default=20)
    parser.add_argument("--held-back", type=float, default=HELD_BACK_S, help="seconds; default: %(default)g")
    options = parser.parse_args(arguments)
    result = trial(options.studies, options.held_back)
    print(f"held back for {options.held_back:g} s: {result.held_back}")
    print(f"median={statistics.median(result.waits_s):.2f} s worst={max(result.waits_s):.2f} s")
    print(f"studies={result.studies} verified={result.verified} early={result.early}")
    return 0 if (result.verified, result.early, result.held_back) == (result.studies, 0, None) else 1


if __name__ == "__main__":
    sys.exit(main())
