"""Rules and dashboard name what metrics.py measures; promtool runs the rules' own tests."""

import json
import re
import subprocess
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import yaml
from prometheus_client import CollectorRegistry, Counter, Histogram, Metric, generate_latest
from prometheus_client.metrics import MetricWrapperBase

from common import metrics
from common.metrics import FAST_S, LoopCounter, LoopHistogram
from server import app
from storage.key_reader import SCOPES

ROOT = Path(__file__).parents[2]
PROMETHEUS = ROOT / "deploy" / "prometheus"
GRAFANA = ROOT / "deploy" / "grafana"
CONFIG: dict[str, Any] = yaml.safe_load((PROMETHEUS / "prometheus.yml").read_text())
DASHBOARD: dict[str, Any] = json.loads((GRAFANA / "dashboards" / "series-gateway.json").read_text())
RULES: list[dict[str, Any]] = [
    rule
    for file in ("recording.yml", "alerts.yml")
    for group in yaml.safe_load((PROMETHEUS / file).read_text())["groups"]
    for rule in group["rules"]
]
ALERTS = {rule["alert"]: rule for rule in RULES if "alert" in rule}
RECORDED = {rule["record"]: rule["expr"] for rule in RULES if "record" in rule}
OURS = list(dict.fromkeys(metric for metric in vars(metrics).values() if isinstance(metric, MetricWrapperBase)))

TARGET = {"job", "instance"}  # labels that Prometheus adds
BY_PROMETHEUS = {"up": TARGET, "ALERTS": {"alertname", "alertstate", "severity"}}
WORDS = {"by", "on", "and", "or", "unless", "offset"}
SUFFIXES = {"counter": ("_total",), "gauge": ("",), "histogram": ("_bucket", "_sum", "_count")}


def described(metric: MetricWrapperBase) -> Metric:
    (one,) = metric.describe()
    return one


def label_names(metric: MetricWrapperBase) -> list[str]:
    return list(metric._labelnames)  # what is public names them once there is a sample


def sampled() -> Iterator[tuple[str, set[str]]]:
    """Name and labels of every sample that a gateway or a server may give."""
    for metric in OURS:
        for suffix in SUFFIXES[described(metric).type]:
            yield described(metric).name + suffix, {*label_names(metric), *(["le"] if suffix == "_bucket" else [])}
    for registry in (metrics.GATEWAY, metrics.SERVER):
        for family in registry.collect():
            for sample in family.samples:
                if not sample.name.startswith(("gateway_", "server_")):
                    yield sample.name, set(sample.labels)


KNOWN: Mapping[str, set[str]] = {name: labels | TARGET for name, labels in sampled()} | BY_PROMETHEUS


def without_strings(expr: str) -> str:
    return re.sub(r'"[^"]*"', '""', expr)


def named(expr: str) -> Iterator[tuple[str, set[str]]]:
    """Every metric that an expression names, with the labels that it is matched or grouped by."""
    bare = re.sub(r"\$?\b\d+[smhd]\b|\$__\w+", "", without_strings(expr))
    grouped = {word for group in re.findall(r"\b(?:by|on) ?\(([^)]*)\)", bare) for word in re.findall(r"\w+", group)}
    bare = re.sub(r"\b(by|on) ?\([^)]*\)", " ", bare)
    for name, matchers, is_function in re.findall(r"([a-zA-Z_:][\w:]*)\s*(?:\{([^}]*)\}|(\())?", bare):
        if not is_function and name not in WORDS:
            yield name, set(re.findall(r"(\w+)\s*[=!]", matchers)) | grouped


def labels_of(name: str) -> set[str]:
    """What a metric can be matched or grouped by; of a recorded one, what its expression leaves of them."""
    if name not in RECORDED:
        return KNOWN[name]
    expr = without_strings(RECORDED[name])
    kept = re.search(r"\bby ?\(([^)]*)\)", expr)
    left = set(re.findall(r"\w+", kept[1])) if kept else set.union(*(labels_of(n) for n, _ in named(expr)))
    return left - ({"le"} if "histogram_quantile" in expr else set())


def expressions() -> Iterator[tuple[str, str]]:
    for rule in RULES:
        yield rule.get("alert") or rule["record"], rule["expr"]
    for panel in DASHBOARD["panels"]:
        for target in panel.get("targets", []):
            yield panel["title"], target["expr"]
    for variable in DASHBOARD["templating"]["list"]:
        if variable["type"] == "query":
            yield variable["name"], re.findall(r"label_values\((.*), \w+\)", variable["definition"])[0]
    for annotation in DASHBOARD["annotations"]["list"]:
        yield annotation["name"], annotation["expr"]


def run(command: str, *arguments: str) -> str:
    done = subprocess.run([command, *arguments], cwd=PROMETHEUS, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


# --- names --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("where", "expr"), list(expressions()))
def test_every_metric_and_label_that_is_asked_for_exists(where: str, expr: str) -> None:
    found = list(named(expr))
    assert found
    unknown = {name for name, _ in found} - KNOWN.keys() - RECORDED.keys()
    assert unknown == set()
    assert set.union(*(labels for _, labels in found)) <= set.union(*(labels_of(name) for name, _ in found))
    for name, _ in found:
        own = re.findall(re.escape(name) + r"\{([^}]*)\}", without_strings(expr))
        assert {label for matchers in own for label in re.findall(r"(\w+)\s*[=!]", matchers)} <= labels_of(name)


def test_values_of_labels_that_rules_name_exist() -> None:
    meaning = {described(m).name: described(m).documentation for m in OURS}
    for name, label, values in re.findall(r'(gateway_\w+|server_\w+)_total\{(\w+)=~?"([^"]+)"', str(RULES)):
        if label in ("reason", "outcome"):
            assert set(values.split("|")) <= set(re.findall(r"\w+", meaning[name].split(f"{label}: ")[1]))


@pytest.mark.parametrize("registry", [metrics.GATEWAY, metrics.SERVER], ids=["gateway", "server"])
def test_no_metric_is_left_out_of_the_dashboard(registry: CollectorRegistry) -> None:
    shown = {name for _, expr in expressions() for name, _ in named(expr)}
    shown |= {name for recorded in shown & RECORDED.keys() for name, _ in named(RECORDED[recorded])}
    measured = {
        one.name: {one.name + suffix for suffix in SUFFIXES[one.type]}
        for one in registry.collect()
        if one.name in {described(metric).name for metric in OURS}
    }
    missing = [name for name, samples in measured.items() if not samples & shown]
    assert [name for name in missing if name != "gateway_associations"] == []  # how many are open says more


# --- docs/metrics.md ------------------------------------------------------------------------------------------------


def test_docs_metrics_holds_every_recorded_one_and_no_other() -> None:
    listed = re.findall(r"^\| `(\w+:\w+:\w+)` \|", (ROOT / "docs" / "metrics.md").read_text(), re.MULTILINE)
    assert listed == list(RECORDED)


# --- the rules ------------------------------------------------------------------------------------------------------


@pytest.mark.peer("promtool")
def test_promtool_takes_configuration_and_rules() -> None:
    assert "SUCCESS" in run("promtool", "check", "config", "--syntax-only", "prometheus.yml")
    assert f"SUCCESS: {len(ALERTS)} rules found" in run("promtool", "check", "rules", "--lint-fatal", "alerts.yml")
    assert f"SUCCESS: {len(RECORDED)} rules found" in run("promtool", "check", "rules", "--lint-fatal", "recording.yml")
    assert CONFIG["rule_files"] == ["recording.yml", "alerts.yml"]


@pytest.mark.peer("promtool")
@pytest.mark.parametrize("registry", [metrics.GATEWAY, metrics.SERVER], ids=["gateway", "server"])
def test_promtool_finds_nothing_wrong_with_names_and_meanings(registry: CollectorRegistry) -> None:
    done = subprocess.run(
        ["promtool", "check", "metrics"], input=generate_latest(registry), capture_output=True, check=False
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, b"", b"")


@pytest.mark.peer("promtool")
def test_alerts_fire_when_they_should_and_not_on_a_good_day() -> None:
    assert "SUCCESS" in run("promtool", "test", "rules", "tests.yml")


def test_every_alert_is_seen_firing_in_the_rules_own_tests() -> None:
    tests = yaml.safe_load((PROMETHEUS / "tests.yml").read_text())["tests"]
    fired = {
        name
        for test in tests
        for expected in test.get("promql_expr_test", [])
        for sample in expected.get("exp_samples", [])
        for name in re.findall(r'alertname="(\w+)"', sample["labels"])
    }
    fired |= {alert["alertname"] for test in tests for alert in test.get("alert_rule_test", [])}
    assert fired == ALERTS.keys()


@pytest.mark.parametrize("name", ALERTS)
def test_an_alert_says_how_bad_it_is_and_what_to_do(name: str) -> None:
    alert = ALERTS[name]
    assert alert["labels"]["severity"] in ("critical", "warning", "info")
    assert set(alert["annotations"]) == {"summary", "description", "runbook"}
    page, _, anchor = alert["annotations"]["runbook"].partition("#")
    headings = re.findall(r"^#+ (.+)$", (ROOT / page).read_text(), re.MULTILINE)
    assert anchor in [re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings]


@pytest.mark.parametrize("name", ALERTS)
def test_a_setting_or_command_that_an_alert_names_exists(name: str) -> None:
    text = " ".join(ALERTS[name]["annotations"].values())
    assert set(re.findall(r"\b(?:GATEWAY|SERVER)_[A-Z_]+\b", text)) <= SETTINGS
    assert set(re.findall(r"`(python [^`]+)`", text)) <= COMMANDS


SETTINGS = set(re.findall(r"^# ([A-Z_]+)=", (ROOT / ".env.example").read_text(), re.MULTILINE))
COMMANDS = {
    "python client.py status",
    "python client.py check",
    "python client.py dead-letters list",
    "python client.py dead-letters replay --all",
    "python server.py check",
}


def test_a_counter_whose_increase_somebody_asks_for_begins_at_0() -> None:
    begin = {f"{described(one).name}_total" for one in OURS if not label_names(one) or one in metrics.KNOWN}
    asked = {name for _, expr in expressions() for name in re.findall(r"increase\((\w+)", expr)}
    assert len(asked) > 5
    assert asked <= begin


# --- Prometheus and Grafana ----------------------------------------------------------------------------------------


def test_prometheus_asks_what_the_processes_serve() -> None:
    jobs = {job["job_name"]: job for job in CONFIG["scrape_configs"]}
    assert jobs.keys() == {"gateway", "server"}
    assert jobs["server"]["metrics_path"] in app.openapi()["paths"]
    assert "metrics:read" in SCOPES
    assert jobs["server"]["authorization"]["type"] == "Bearer"
    used = set(re.findall(r'job=~?"([\w|]+)"', str(RULES) + json.dumps(DASHBOARD).replace('\\"', '"')))
    assert {job for names in used for job in names.split("|")} == jobs.keys()


def test_every_panel_has_a_description_and_a_unit() -> None:
    rows = [panel["title"] for panel in DASHBOARD["panels"] if panel["type"] == "row"]
    assert rows == ["At a glance", "Intake", "Completion", "Dispatch", "Server", "Processes"]
    for panel in DASHBOARD["panels"]:
        if panel["type"] != "row":
            assert panel["description"]
            assert panel["fieldConfig"]["defaults"]["unit"]


def test_everything_asks_the_chosen_datasource() -> None:
    assert set(re.findall(r'"uid": "([^"]+)"', json.dumps(DASHBOARD))) == {"${datasource}", DASHBOARD["uid"]}


def test_panels_have_ids_of_their_own_and_do_not_overlap() -> None:
    panels = DASHBOARD["panels"]
    assert len({panel["id"] for panel in panels}) == len(panels)
    taken: set[tuple[int, int]] = set()
    for place in (panel["gridPos"] for panel in panels):
        cells = {(place["x"] + dx, place["y"] + dy) for dx in range(place["w"]) for dy in range(place["h"])}
        assert not cells & taken
        assert place["x"] + place["w"] <= 24
        taken |= cells


def test_grafana_is_told_where_the_dashboards_are() -> None:
    provisioning = GRAFANA / "provisioning"
    (provider,) = yaml.safe_load((provisioning / "dashboards" / "series-gateway.yml").read_text())["providers"]
    (source,) = yaml.safe_load((provisioning / "datasources" / "prometheus.yml").read_text())["datasources"]
    assert provider["type"] == "file"
    assert provider["options"]["path"] == "/etc/grafana/dashboards"
    assert source["type"] == DASHBOARD["templating"]["list"][0]["query"] == "prometheus"
    assert source["jsonData"]["timeInterval"] == CONFIG["global"]["scrape_interval"]


def test_metrics_of_every_image_say_what_prometheus_clients_own_would() -> None:
    registry = CollectorRegistry()
    theirs = Histogram("x", "x", registry=registry, buckets=FAST_S), Counter("y", "y", ["status"], registry=registry)
    ours = LoopHistogram("x", "x", registry=None, buckets=FAST_S), LoopCounter("y", "y", ["status"], registry=None)
    for histogram, counter in (theirs, ours):
        for amount in (0.0, 0.0004, 0.0005, 0.003, 10, 11, 1e9):
            histogram.observe(amount)
        counter.labels("0x0000").inc()
        counter.labels("0x0000").inc(2.5)
        counter.labels("0xA700").inc(0)

    def said(metric: MetricWrapperBase) -> list[tuple[str, dict[str, str], float]]:
        (family,) = metric.collect()
        return [(s.name, s.labels, s.value) for s in family.samples if not s.name.endswith("_created")]

    assert [*map(said, ours)] == [*map(said, theirs)]
