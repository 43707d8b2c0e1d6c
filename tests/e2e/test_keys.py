"""Gateway and server over TLS with a real certificate, and with a key that is made, revoked and made again."""

import ssl
import sys
from pathlib import Path
from typing import Any

import httpx
import pytest
import trustme

from bench.rig.processes import ROOT, Process, running, start_gateway
from tests.rig.commands import answer, server_command
from tests.rig.factories import SERIES, make_dataset
from tests.rig.sending import send


@pytest.fixture
def ca(tmp_path: Path) -> trustme.CA:
    ca = trustme.CA()
    ca.cert_pem.write_to_path(str(tmp_path / "ca.pem"))
    issued = ca.issue_cert("127.0.0.1")
    issued.private_key_and_cert_chain_pem.write_to_path(str(tmp_path / "server.pem"))
    return ca


def tls_server(folder: Path) -> tuple[Process, str]:
    pem = str(folder / "server.pem")
    options = ["--port", "0", "--ssl-keyfile", pem, "--ssl-certfile", pem]
    command = [sys.executable, "-m", "uvicorn", "--app-dir", str(ROOT), *options, "server:app"]
    process = Process("server", command, folder, DATABASE_URL=database(folder))
    line = process.wait_for(lambda line: line if "Uvicorn running on https://" in line else None)
    return process, f"https://{line.split('https://')[1].split()[0]}"


def database(folder: Path) -> str:
    return f"sqlite+aiosqlite:///{folder}/series.db"


def new_key(folder: Path, scope: str) -> dict[str, Any]:
    found: dict[str, Any] = answer(database(folder), "keys", "create", "gw", "--scope", scope)
    return found


def gateway(folder: Path, url: str, **environment: str) -> tuple[Process, int]:
    journal = folder / "gateway.db"
    return start_gateway(
        folder,
        url,
        environment={
            "GATEWAY_IDLE_POLICY": "fixed",
            "GATEWAY_IDLE_TIMEOUT_S": "0.5",
            "GATEWAY_RETRY_MAX_S": "0.5",
            "GATEWAY_DRAIN_TIMEOUT_S": "1",
            "GATEWAY_JOURNAL_PATH": str(journal),
        }
        | environment,
    )


@pytest.mark.slow
def test_over_tls_the_gateway_checks_the_server_and_the_server_its_key(tmp_path: Path, ca: trustme.CA) -> None:
    process, url = tls_server(tmp_path)
    key = new_key(tmp_path, "admin")["key"]
    (tmp_path / "key").write_text(key)
    environment = {"GATEWAY_SERVER_CA": str(tmp_path / "ca.pem"), "GATEWAY_API_KEY_FILE": str(tmp_path / "key")}
    with running(process):
        sender, port = gateway(tmp_path, url, **environment)
        with running(sender):
            send(port, [make_dataset("1"), make_dataset("2")])
            sender.wait_for_event("report.delivered", stored=2)
        tls = ssl.create_default_context(cafile=tmp_path / "ca.pem")
        with httpx.Client(verify=tls, trust_env=False) as http:
            record = http.get(f"{url}/series/{SERIES}", headers={"Authorization": f"Bearer {key}"}).json()
        assert record["NumInstances"] == 2
        assert key not in "\n".join(process.lines + sender.lines)


@pytest.mark.slow
def test_a_gateway_does_not_talk_to_a_server_whose_certificate_it_cannot_check(tmp_path: Path, ca: trustme.CA) -> None:
    process, url = tls_server(tmp_path)
    with running(process):
        sender, port = gateway(tmp_path, url, GATEWAY_API_KEY="secret-key")
        with running(sender):
            send(port, [make_dataset("1")])
            delayed = sender.wait_for_event("report.delayed")
        assert "CERTIFICATE_VERIFY_FAILED" in delayed["reason"]
        assert process.events("request.audited") == []


@pytest.mark.slow
def test_a_revoked_key_delays_and_a_new_one_in_its_file_delivers_without_restart(
    tmp_path: Path, ca: trustme.CA
) -> None:
    process, url = tls_server(tmp_path)
    old = new_key(tmp_path, "series:write")
    file = tmp_path / "key"
    file.write_text(old["key"])
    with running(process):
        sender, port = gateway(
            tmp_path, url, GATEWAY_SERVER_CA=str(tmp_path / "ca.pem"), GATEWAY_API_KEY_FILE=str(file)
        )
        with running(sender):
            send(port, [make_dataset("1")])
            sender.wait_for_event("report.delivered", stored=1)
            assert server_command(database(tmp_path), "keys", "revoke", old["id"]).returncode == 0
            send(port, [make_dataset("2")])
            assert "401" in sender.wait_for_event("report.delayed")["reason"]
            file.write_text(new_key(tmp_path, "series:write")["key"])
            sender.wait_for_event("report.delivered", stored=2)
            assert sender.events("report.rejected") == []
