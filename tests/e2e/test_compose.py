"""docker-compose.yml, really run: all healthy, what Orthanc sends verified, nothing lost when all is made anew.

Where no image can be pulled, Debian's packages stand in for those that it pins (bench/rig/images.py). Grafana and
Jaeger, which are no packages, are not run.
"""

import json
import re
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from bench.demo import expected, studies
from bench.rig.compose import CommandFailed, Project, project, until
from bench.rig.peers import Orthanc
from bench.rig.processes import ROOT
from tests.rig.papers import OPERATIONS, TRY, line, lines

pytestmark = [pytest.mark.slow, pytest.mark.peer("docker"), pytest.mark.timeout(2700)]


def detached(command: str) -> str:
    """As in the papers, but until all are healthy and not until Ctrl-C."""
    return f"{command.partition(' #')[0].rstrip()} --detach --wait"


POSTGRESQL = "postgresql+asyncpg://gateway@postgres/series"
UP = detached(line(TRY, "docker compose up --build"))
FILES = [path for path in studies() if "98892003" in path.parts]  # three studies, seven series
TOOLS = ("cc", "gcc", "git", "make", "pip")


@pytest.fixture
def compose(tmp_path: Path) -> Iterator[Project]:
    with project(tmp_path, "orthanc", "postgres", "prometheus") as running:
        yield running


def new_key(compose: Project) -> str:
    """Of a reader, made by docs/try.md's command."""
    said = compose(line(TRY, "docker compose exec server python server.py keys create me"))
    (key,) = re.findall(r"\bsgk_\S+", said)
    return str(key)


def send(compose: Project, files: list[Path], modality: str = "GATEWAY") -> None:
    """Upload to Orthanc, and send from there."""
    with httpx.Client(base_url=compose.url(8042), timeout=120, trust_env=False) as http:
        pacs = Orthanc(http)
        pacs.send(sorted({pacs.upload(path) for path in files}), modality)


def send_without_a_browser(compose: Project, files: list[Path]) -> None:
    """By docs/try.md's commands."""
    (folder,) = {path.parent for path in files}
    upload = line(TRY, "storescu -xs --no-halt +sd +r -aec ORTHANC").partition("#")[0].replace("folder/", str(folder))
    compose(upload.replace("4242", str(compose.ports[4242])))
    of_orthanc = [command.partition("#")[0] for command in lines(TRY, "curl http://127.0.0.1:8042/")]
    listed, sent = (command.replace("8042", str(compose.ports[8042])) for command in of_orthanc)
    for study in json.loads(compose(listed.replace("curl", "curl --silent --show-error"))):
        compose(sent.replace("ID", study))
    assert "ready" in compose(line(TRY, "docker compose exec client python client.py status").partition("#")[0])


def rows(compose: Project, key: str) -> dict[str, dict[str, object]]:
    """The rows, by docs/try.md's command."""
    command = (
        line(TRY, 'curl -H "Authorization: Bearer KEY"').replace("KEY", key).replace("8000", str(compose.ports[8000]))
    )
    said = compose(command.replace("curl", "curl --silent --show-error"))
    return {row["SeriesInstanceUID"]: row for row in json.loads(said)["series"]}


def verified(compose: Project, key: str, files: list[Path]) -> dict[str, dict[str, object]]:
    """The rows, once they are exactly these files' series, and verified."""
    sent = expected(files)

    def look() -> dict[str, dict[str, object]] | None:
        stored = rows(compose, key)
        done = stored.keys() == sent.keys() and all(row["Verdict"] == "verified" for row in stored.values())
        return stored if done else None

    stored = until(look)
    assert {uid: (row["PatientID"], row["NumInstances"]) for uid, row in stored.items()} == {
        uid: (series.patient_id, len(series.sop_instance_uids)) for uid, series in sent.items()
    }
    return stored


def of_study(name: str) -> list[Path]:
    """Its files; a study of FILES has a folder of its own."""
    return [path for path in FILES if name in path.parts]


def refused(compose: Project, command: str, **environment: str) -> str:
    with pytest.raises(CommandFailed) as error:
        compose(command, **environment)
    return str(error.value)


def check_rights(compose: Project, service: str) -> None:
    """No root, no capability, none to gain, and a disk that is read-only but for its volumes and /tmp."""
    status = compose.inside(service, "id -u; grep -E '^(Cap|NoNewPrivs)' /proc/self/status")
    uid, *lines = status.split("\n", 1)
    assert uid == "10001"
    found = dict(re.findall(r"^(\w+):\s+(\w+)$", lines[0], re.MULTILINE))
    assert {int(found.pop(name), 16) for name in ("CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb")} == {0}
    assert found == {"NoNewPrivs": "1"}
    for folder in ("/", "/app", "/venv", "/home/gateway"):
        assert "Read-only" in compose.inside(service, f"touch {folder}/x 2>&1 || true")
    compose.inside(service, "touch /data/x /tmp/x && rm /data/x /tmp/x")
    assert set(compose.inside(service, "stat -c %a /data/*.db").split()) == {"600"}


def check_image(compose: Project) -> None:
    """It holds what runs, compiled, and nothing that builds, installs or tests."""
    here = {path.name for path in ROOT.iterdir()}
    held = set(compose.inside("server", "ls /app").split())
    assert held - {"__pycache__"} <= here
    assert not held & {"bench", "tests", "docs", "deploy"}
    assert compose.inside("server", "ls /app/__pycache__/server.*.pyc")
    assert compose.inside("server", f"command -v {' '.join(TOOLS)} || true") == ""


def test_what_orthanc_sends_is_verified_and_kept_when_all_is_made_anew(compose: Project) -> None:
    compose("docker compose build")
    began = time.monotonic()
    compose(UP)
    print(f"healthy after {time.monotonic() - began:.0f} s")
    key = new_key(compose)
    first = of_study("MR1") + of_study("MR2")
    send(compose, first)
    before = verified(compose, key, first)
    for service in ("server", "client"):
        check_rights(compose, service)
    check_image(compose)
    assert " 0 failed" in compose.inside("client", "python client.py check")
    assert " 0 failed" in compose.inside("server", "python server.py check")

    compose("docker compose stop")
    states = compose("docker compose ps --all --format '{{.Service}} {{.ExitCode}}'")
    assert {"client", "server"} <= set(states.split())
    assert "137" not in states.split(), "a process was killed, since it did not stop in time"
    compose(line(TRY, "docker compose down").partition("#")[0])
    compose(UP)
    assert rows(compose, key) == before
    send_without_a_browser(compose, of_study("MR700"))
    after = verified(compose, key, FILES)
    assert {uid: after[uid] for uid in before} == before

    compose("docker compose --profile observability up --detach --wait prometheus server client")
    until(lambda: scraped(compose))


def scraped(compose: Project) -> bool | None:
    """Whether Prometheus reads the metrics of both processes, and computes every rule."""
    answers = [
        httpx.get(f"{compose.url(9090)}/api/v1/{name}", trust_env=False).json()["data"] for name in ("targets", "rules")
    ]
    targets = {target["labels"]["job"]: target["health"] for target in answers[0]["activeTargets"]}
    health = {rule["health"] for group in answers[1]["groups"] for rule in group["rules"]}
    return (targets, health) == ({"gateway": "up", "server": "up"}, {"ok"}) or None


def test_the_papers_way_from_sqlite_to_postgresql_keeps_rows_and_keys(compose: Project) -> None:
    said = refused(compose, "docker compose --profile postgres up --build --detach --wait")
    assert "postgres-password" in said
    assert f"DATABASE_URL={POSTGRESQL}" in compose("docker compose logs postgres-password")
    compose(UP)
    key = new_key(compose)
    send(compose, of_study("MR1"))
    before = verified(compose, key, of_study("MR1"))

    (block,) = re.findall(r"^docker compose stop\n(?:.*\n)*?(?=```)", OPERATIONS, re.MULTILINE)
    compose(detached(block))
    assert rows(compose, key) == before
    assert "PostgreSQL" in compose.inside("server", "python server.py check")
    send(compose, of_study("MR2"))
    verified(compose, key, of_study("MR1") + of_study("MR2"))
    check_rights(compose, "client")

    password = compose.inside("server", "cat /secrets/password")
    compose("docker compose --profile postgres down")
    compose(detached(line(OPERATIONS, f"DATABASE_URL={POSTGRESQL} docker compose")))
    assert len(rows(compose, key)) == len(expected(of_study("MR1") + of_study("MR2")))
    names = compose("docker ps --all --quiet --filter label=com.docker.compose.project=$COMPOSE_PROJECT_NAME").split()
    assert password not in compose(f"docker inspect {' '.join(names)}")

    compose("docker compose --profile postgres down")
    compose("docker compose down --volumes")  # keeps the volume of a profile that is not named, and not its password's
    refused(compose, detached(line(OPERATIONS, f"DATABASE_URL={POSTGRESQL} docker compose")))
    assert "volume postgres holds a database" in compose("docker compose --profile postgres logs postgres-password")


def test_a_second_gateway_has_a_journal_and_a_port_of_its_own(compose: Project) -> None:
    compose(detached(line(OPERATIONS, "docker compose -f docker-compose.yml -f deploy/compose/two-gateways.yml up")))
    key = new_key(compose)
    send(compose, of_study("MR1"))
    send(compose, of_study("MR2"), "GATEWAY2")
    verified(compose, key, of_study("MR1") + of_study("MR2"))
    heard = compose.inside("server", "python server.py check")
    assert "2 heard from" in heard
    assert "port is already allocated" in refused(compose, "docker compose up --detach --scale client=2 client")
