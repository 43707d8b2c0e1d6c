"""A real Prometheus with deploy/prometheus scrapes a real gateway and a real server, and evaluates every rule."""

import json
import re
import shutil
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml
from pynetdicom import AE
from pynetdicom.presentation import build_context

from bench.rig.peers import free_port
from bench.rig.processes import ROOT, Process, gateway, running, server
from bench.rig.senders import pure_scu, synthetic_series
from tests.rig.commands import answer

DEPLOYED = ROOT / "deploy" / "prometheus"
INTERVAL = "1s"


def configuration(folder: Path, gateway_port: int, server_url: str, key: Path) -> Path:
    """deploy/prometheus with these addresses, and a short interval."""
    config = yaml.safe_load((DEPLOYED / "prometheus.yml").read_text())
    config["global"] = {"scrape_interval": INTERVAL, "evaluation_interval": INTERVAL}
    config["rule_files"] = [str(DEPLOYED / name) for name in config["rule_files"]]
    jobs = {job["job_name"]: job for job in config["scrape_configs"]}
    jobs["gateway"]["static_configs"] = [{"targets": [f"127.0.0.1:{gateway_port}"]}]
    jobs["server"]["static_configs"] = [{"targets": [server_url.removeprefix("http://")]}]
    jobs["server"]["authorization"]["credentials_file"] = str(key)
    path = folder / "prometheus.yml"
    path.write_text(yaml.safe_dump(config))
    return path


@contextmanager
def prometheus(folder: Path, config: Path) -> Iterator[httpx.Client]:
    """Debian's Prometheus on a loopback port: its API."""
    binary = shutil.which("prometheus") or ""
    port = free_port()
    options = [
        f"--config.file={config}",
        f"--storage.tsdb.path={folder}/tsdb",
        f"--web.listen-address=127.0.0.1:{port}",
    ]
    with (
        running(Process("prometheus", [binary, *options], folder)) as process,
        httpx.Client(base_url=f"http://127.0.0.1:{port}/api/v1", trust_env=False) as api,
    ):
        process.wait_for(lambda line: True if "Server is ready to receive web requests" in line else None)
        yield api


def until(ask: Callable[[], list[Any]], timeout_s: float = 120.0) -> list[Any]:
    """What `ask` gives, once that is something."""
    deadline = time.monotonic() + timeout_s
    while time.monotonic() < deadline:
        if found := ask():
            return found
        threading.Event().wait(0.1)  # Prometheus tells nobody that it has scraped
    raise AssertionError(f"nothing within {timeout_s:g} s")


def asked(api: httpx.Client, query: str) -> list[Any]:
    """The result of a query, once it has one."""

    def ask() -> list[Any]:
        result: list[Any] = api.get("query", params={"query": query}).raise_for_status().json()["data"]["result"]
        return result

    return until(ask)


def send(port: int) -> None:
    images = synthetic_series(3)
    ae = AE("TEST")
    assoc = pure_scu(ae.associate("127.0.0.1", port, [build_context(images[0].SOPClassUID)], ae_title="STORESCP"))
    for image in images:
        assert assoc.send_c_store(image).Status == 0
    assoc.release()


@pytest.mark.slow
@pytest.mark.peer("promtool")
def test_prometheus_scrapes_both_with_a_key_and_every_rule_and_panel_evaluates(tmp_path: Path) -> None:
    key = tmp_path / "key"
    with server(tmp_path) as (_, url):
        scopes = ["--scope", "metrics:read", "--scope", "series:write"]
        answer(f"sqlite+aiosqlite:///{tmp_path}/series.db", "keys", "create", "both", *scopes, "--save", str(key))
        with gateway(tmp_path, url, metrics_port=0, api_key_file=key) as (process, port):
            send(port)
            process.wait_for_event("report.delivered")
            (served,) = process.events("metrics.served")
            with prometheus(tmp_path, configuration(tmp_path, served["port"], url, key)) as api:
                asked(api, 'up{job="gateway"} + on () up{job="server"} == 2')
                asked(api, "gateway_instances_received_total == 3")
                asked(api, 'server_reports_stored_total{outcome="created"} == 1')
                asked(api, "server_heartbeats_total > 0")
                asked(api, "instance:gateway_instances_received:rate5m")
                rules_evaluate(api)
                panels_evaluate(api)


def rules_evaluate(api: httpx.Client) -> None:
    def evaluated() -> list[Any]:
        rules = [rule for group in api.get("rules").json()["data"]["groups"] for rule in group["rules"]]
        return [] if any(rule["health"] == "unknown" for rule in rules) else rules  # not yet

    rules = until(evaluated)
    texts = [(DEPLOYED / name).read_text() for name in ("recording.yml", "alerts.yml")]
    assert len(rules) == sum(len(re.findall("- (?:alert|record):", text)) for text in texts)
    assert [(rule["name"], rule["lastError"]) for rule in rules if rule["health"] != "ok"] == []
    assert [rule["name"] for rule in rules if rule.get("state") == "firing"] == []


def panels_evaluate(api: httpx.Client) -> None:
    dashboard = ROOT / "deploy" / "grafana" / "dashboards" / "series-gateway.json"
    panels = json.loads(dashboard.read_text())["panels"]
    variables = {"$__rate_interval": "1m", "$gateway": ".*", "$server": ".*"}
    for panel in panels:
        for target in panel.get("targets", []):
            expr = target["expr"]
            for name, value in variables.items():
                expr = expr.replace(name, value)
            assert api.get("query", params={"query": expr}).json()["status"] == "success", expr
