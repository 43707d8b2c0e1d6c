"""Every path, port, variable and command of the deployment files exists; tests/e2e/test_compose.py runs them."""

import ast
import json
import re
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from sqlalchemy.engine import make_url

from api.cli.commands import command_line
from common.settings import GatewaySettings, ServerSettings, variable
from server import app
from tests.rig.papers import SOURCES

ROOT = Path(__file__).parents[2]
DOCKERFILE = (ROOT / "Dockerfile").read_text()
COMPOSE: dict[str, Any] = yaml.safe_load((ROOT / "docker-compose.yml").read_text())
SERVICES: dict[str, dict[str, Any]] = COMPOSE["services"]
PROMETHEUS: dict[str, Any] = yaml.safe_load((ROOT / "deploy" / "prometheus" / "prometheus.yml").read_text())
OURS = [name for name, service in SERVICES.items() if "build" in service]
ONCE = {"keys", "postgres-password", "prometheus-key"}
POSTGRESQL = "postgresql+asyncpg://gateway@postgres/series"  # as the file's first lines and docs/operations.md give it
PROFILES = {"postgres", "observability"}
VARIABLES = {
    variable(cls, name): field for cls in (GatewaySettings, ServerSettings) for name, field in cls.model_fields.items()
}


def copied() -> list[str]:
    """What .dockerignore lets through, all of which is copied."""
    assert re.findall(r"^COPY (?!--from)(.+)$", DOCKERFILE, re.MULTILINE) == ["requirements.txt .", ". ."]
    return re.findall(r"^!(\S+)$", (ROOT / ".dockerignore").read_text(), re.MULTILINE)


def interpolated(value: str, **given: str) -> str:
    """As Compose does: the variable given, or the default behind :-."""
    return re.sub(r"\$\{(\w+):-([^}]*)\}", lambda found: given.get(found[1]) or found[2], value)


def of_gateway() -> GatewaySettings:
    environment = SERVICES["client"]["environment"]
    return GatewaySettings(
        **{name.removeprefix("GATEWAY_").lower(): v for name, v in environment.items() if name.startswith("GATEWAY_")}
    )


def started(*profiles: str) -> dict[str, dict[str, Any]]:
    """The services of `docker compose up` with these profiles."""
    return {name: s for name, s in SERVICES.items() if not s.get("profiles") or set(s["profiles"]) & set(profiles)}


def default(field: Any) -> str:
    if field.default is None or field.default_factory:
        return ""
    value = f"{field.default:g}" if isinstance(field.default, float) else str(field.default)
    return value.rstrip("/")


def test_every_copied_path_exists() -> None:
    assert copied()
    assert [path for path in copied() if not list(ROOT.glob(path))] == []


def test_the_image_holds_every_module_that_runs() -> None:
    held = {path for pattern in copied() for found in ROOT.glob(pattern) for path in (found, *found.rglob("*.py"))}
    assert set(SOURCES) <= held


def test_the_image_holds_what_the_server_reads_beside_its_modules() -> None:
    assert "web" in copied()
    assert (ROOT / "storage" / "migrations" / "env.py") in SOURCES


def test_the_last_user_is_not_root() -> None:
    assert re.findall(r"^USER (\S+)$", DOCKERFILE, re.MULTILINE)[-1] == "gateway"
    assert not any("user" in SERVICES[name] for name in OURS)


def test_commands_name_what_exists() -> None:
    assert SERVICES["client"]["command"] == ["python", "client.py"]
    assert SERVICES["server"]["command"][:2] == ["uvicorn", "server:app"]
    assert app.title
    python, script, *arguments = SERVICES["keys"]["command"]
    assert (python, script) == ("python", "server.py")
    given = created_key(arguments)
    assert given["scopes"] == ("series:write", "series:read")
    assert str(given["save"]) == SERVICES["client"]["environment"]["GATEWAY_API_KEY_FILE"]
    assert json.loads(re.findall(r"^CMD (.+)$", DOCKERFILE, re.MULTILINE)[-1]) == ["python", "client.py"]


def created_key(arguments: list[str]) -> dict[str, Any]:
    """What `python server.py` with these arguments makes of them."""
    command_line().make_context("server.py", arguments, resilient_parsing=True)
    create = command_line().commands["keys"].commands["create"]  # type: ignore[attr-defined]
    params: dict[str, Any] = create.make_context("create", arguments[2:]).params
    return params


def test_prometheus_finds_the_key_that_is_made_for_it() -> None:
    shell, option, script = SERVICES["prometheus-key"]["command"]
    assert (shell, option) == ("sh", "-c")
    create, chmod = (shlex.split(part) for part in script.split(" && "))
    given = created_key(create[2:])
    (server,) = [job for job in PROMETHEUS["scrape_configs"] if job["job_name"] == "server"]
    assert given["scopes"] == ("metrics:read",)
    assert str(given["save"]) == chmod[-1] == server["authorization"]["credentials_file"]
    assert "prometheus-key:/keys" in SERVICES["prometheus-key"]["volumes"]
    assert "prometheus-key:/keys:ro" in SERVICES["prometheus"]["volumes"]


def test_every_variable_in_compose_is_a_setting() -> None:
    named = {name for service in OURS for name in SERVICES[service].get("environment", {})}
    assert named - VARIABLES.keys() == {"PGPASSFILE", "OTEL_EXPORTER_OTLP_ENDPOINT"}  # libraries', no settings of ours


def test_every_variable_in_compose_is_accepted() -> None:
    assert of_gateway().scp_host == "0.0.0.0"  # noqa: S104 - inside the container
    for given in ({}, {"DATABASE_URL": ""}, {"DATABASE_URL": POSTGRESQL}):
        ServerSettings(database_url=interpolated(SERVICES["server"]["environment"]["DATABASE_URL"], **given))


def test_variables_have_defaults_with_which_it_starts() -> None:
    text = (ROOT / "docker-compose.yml").read_text()
    assert set(re.findall(r"\$\{?(\w+)", text)) == {"DATABASE_URL", "OTEL_EXPORTER_OTLP_ENDPOINT"}
    assert len(re.findall(r"\$\{\w+:-[^}]*\}", text)) == text.count("$")
    assert f"DATABASE_URL={POSTGRESQL} docker compose --profile postgres up" in text
    assert "OTEL_EXPORTER_OTLP_ENDPOINT=http://jaeger:4318 docker compose --profile observability up" in text


def test_env_example_holds_every_setting_with_its_default() -> None:
    example = dict(re.findall(r"^# ([A-Z_]+)=(.*)$", (ROOT / ".env.example").read_text(), re.MULTILINE))
    assert example == {name: default(field) for name, field in VARIABLES.items()}


def test_published_ports_are_those_the_processes_listen_on_and_reach_this_machine_only() -> None:
    published = {name: service["ports"] for name, service in SERVICES.items() if "ports" in service}
    command = SERVICES["server"]["command"]
    server_port = command[command.index("--port") + 1]
    scp_port = GatewaySettings.model_fields["scp_port"].default
    assert published == {
        "orthanc": ["127.0.0.1:4242:4242", "127.0.0.1:8042:8042"],
        "server": [f"127.0.0.1:{server_port}:{server_port}"],
        "client": [f"127.0.0.1:{scp_port}:{scp_port}"],
        "prometheus": ["127.0.0.1:9090:9090"],
        "grafana": ["127.0.0.1:3000:3000"],
        "jaeger": ["127.0.0.1:16686:16686"],
    }
    assert SERVICES["client"]["environment"]["GATEWAY_SERVER_URL"] == f"http://server:{server_port}"


def test_orthanc_knows_the_gateway() -> None:
    configuration = json.loads(SERVICES["orthanc"]["environment"]["ORTHANC_JSON"])
    fields = GatewaySettings.model_fields
    assert configuration["DicomModalities"] == {
        "GATEWAY": [fields["ae_title"].default, "client", fields["scp_port"].default]
    }


def test_orthanc_alone_may_send() -> None:
    assert of_gateway().may_associate("ORTHANC", "172.18.0.2")  # Orthanc's own default title
    assert not of_gateway().may_associate("SOMEONE", "172.18.0.2")


def test_the_gateways_health_check_is_the_probe_that_is_mounted() -> None:
    *python, path, question = SERVICES["client"]["healthcheck"]["test"][1:]
    assert (python, question) == (["python", "-I", "-S"], "ready")
    assert f"./deploy/kubernetes/probe.py:{path}:ro" in SERVICES["client"]["volumes"]


def test_no_health_check_needs_an_engine_of_2024() -> None:
    assert not any("start_interval" in service.get("healthcheck", {}) for service in SERVICES.values())


def test_images_are_pinned() -> None:
    images = [service["image"] for service in SERVICES.values() if "image" in service]
    images += re.findall(r"^FROM (\S+)", DOCKERFILE, re.MULTILINE)
    assert all(re.search(r":v?\d+\.\d+", image) for image in images)


def test_volumes_are_declared_and_mounted_files_exist() -> None:
    mounts = [mount.split(":") for service in SERVICES.values() for mount in service.get("volumes", [])]
    assert {source for source, *_ in mounts if not source.startswith("./")} == COMPOSE["volumes"].keys()
    assert [source for source, *_ in mounts if source.startswith("./") and not (ROOT / source).exists()] == []
    assert all(mount[2:] == ["ro"] for mount in mounts if mount[0].startswith("./"))
    ours = [mount.split(":") for name in OURS for mount in SERVICES[name]["volumes"]]
    written = {path for source, path, *mode in ours if not source.startswith("./") and path != "/postgres"}
    assert written == set(re.findall(r" (/\w+)", re.findall("install -d .*", DOCKERFILE)[0]))
    assert "VOLUME /data" in DOCKERFILE
    assert "sqlite+aiosqlite:////data/" in SERVICES["server"]["environment"]["DATABASE_URL"]


@pytest.mark.parametrize("profiles", [(), ("postgres",), ("observability",), ("observability", "postgres")])
def test_what_is_started_needs_only_what_is_started(profiles: tuple[str, ...]) -> None:
    services = started(*profiles)
    assert {"orthanc", "keys", "server", "client"} <= services.keys()
    for name, service in services.items():
        for needed, how in service.get("depends_on", {}).items():
            assert needed in SERVICES
            assert needed in services or how["required"] is False, f"{name} needs {needed}"
            once = how["condition"] == "service_completed_successfully"
            assert once == (needed in ONCE)
            assert once or "healthcheck" in SERVICES[needed]
    assert {profile for service in SERVICES.values() for profile in service.get("profiles", [])} == PROFILES


def test_whoever_writes_the_database_names_the_same_one() -> None:
    those = [SERVICES[name] for name in ("keys", "server", "prometheus-key", "postgres-password")]
    assert len({service["environment"]["DATABASE_URL"] for service in those}) == 1
    assert all(any(mount.startswith("secrets:/secrets") for mount in service["volumes"]) for service in those)
    # one process at a time on SQLite, and PostgreSQL before all of them
    assert set(SERVICES["server"]["depends_on"]) == {"keys", "prometheus-key"}
    assert set(SERVICES["prometheus-key"]["depends_on"]) == {"keys"}
    assert set(SERVICES["keys"]["depends_on"]) == {"postgres"}


def test_postgresqls_password_is_made_once_and_found_by_both_sides(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    service, environment = SERVICES["postgres-password"], SERVICES["postgres"]["environment"]
    python, option, script = service["command"]
    assert (python, option) == ("python", "-c")
    volume = tmp_path.with_name("postgres")
    volume.mkdir()
    here = script.replace('"/secrets"', repr(str(tmp_path))).replace('"/postgres"', repr(str(volume)))

    def run(url: str) -> subprocess.CompletedProcess[str]:
        variables = {"DATABASE_URL": url, "PYTHONDONTWRITEBYTECODE": "1"}
        return subprocess.run([sys.executable, "-c", here], env=variables, capture_output=True, text=True, check=False)

    refused = run(interpolated(service["environment"]["DATABASE_URL"]))
    assert (refused.returncode, list(tmp_path.iterdir())) == (1, [])
    assert f"DATABASE_URL={POSTGRESQL}" in refused.stderr
    assert run(POSTGRESQL).returncode == 0
    url = make_url(POSTGRESQL)
    host, port, database, user, password = (tmp_path / "pgpass").read_text().strip().split(":")
    assert (host, port, database, user) == (url.host, "5432", url.database, url.username)
    assert (environment["POSTGRES_DB"], environment["POSTGRES_USER"]) == (database, user)
    assert (tmp_path / Path(environment["POSTGRES_PASSWORD_FILE"]).name).read_text() == password
    assert Path(service["environment"]["PGPASSFILE"]).name == "pgpass"
    assert {path.stat().st_mode & 0o777 for path in tmp_path.iterdir()} == {0o600}
    (volume / "18").mkdir()
    assert run(POSTGRESQL).returncode == 0
    assert password in (tmp_path / "pgpass").read_text()
    for path in tmp_path.iterdir():  # as `down --volumes` without the profile does
        path.unlink()
    assert "down --volumes" in run(POSTGRESQL).stderr
    assert list(tmp_path.iterdir()) == []


def test_prometheus_and_grafana_find_each_other_and_what_they_show() -> None:
    targets = {job["job_name"]: job["static_configs"][0]["targets"] for job in PROMETHEUS["scrape_configs"]}
    assert targets == {"gateway": [f"client:{of_gateway().metrics_port}"], "server": ["server:8000"]}
    assert of_gateway().metrics_host == of_gateway().scp_host
    mounts = {mount.split(":")[1]: ROOT / mount.split(":")[0] for mount in SERVICES["grafana"]["volumes"]}
    (provider,) = yaml.safe_load((mounts["/etc/grafana/provisioning"] / "dashboards/series-gateway.yml").read_text())[
        "providers"
    ]
    assert mounts[provider["options"]["path"]] == ROOT / "deploy/grafana/dashboards"
    home = SERVICES["grafana"]["environment"]["GF_DASHBOARDS_DEFAULT_HOME_DASHBOARD_PATH"]
    assert (mounts[str(Path(home).parent)] / Path(home).name).is_file()
    (source,) = yaml.safe_load((mounts["/etc/grafana/provisioning"] / "datasources/prometheus.yml").read_text())[
        "datasources"
    ]
    assert source["url"] == "http://prometheus:9090"
    assert {Path(file).parent for file in PROMETHEUS["rule_files"]} == {Path()}  # beside prometheus.yml
    assert "./deploy/prometheus:/etc/prometheus:ro" in SERVICES["prometheus"]["volumes"]


@pytest.mark.parametrize(
    "name", sorted(SERVICES.keys() - ONCE - {"jaeger"})
)  # whose image has nothing to check it with
def test_every_service_has_a_health_check(name: str) -> None:
    command, *arguments = SERVICES[name]["healthcheck"]["test"][1:]
    if command == "python":
        ast.parse(arguments[1])


def test_health_checks_ask_what_exists() -> None:
    assert "/health/ready" in app.openapi()["paths"]
    assert "/health/ready" in SERVICES["server"]["healthcheck"]["test"][-1]


def test_the_gateway_has_time_to_drain() -> None:
    grace_s = int(SERVICES["client"]["stop_grace_period"].removesuffix("s"))
    assert grace_s > 2 * GatewaySettings.model_fields["drain_timeout_s"].default


@pytest.mark.parametrize("name", sorted(SERVICES.keys() - set(OURS)))
def test_foreign_containers_gain_no_rights(name: str) -> None:
    options = SERVICES[name].get("security_opt", [])
    assert "no-new-privileges:true" in options or name == "orthanc"


@pytest.mark.parametrize("name", OURS)
def test_our_containers_have_no_more_rights_than_they_need(name: str) -> None:
    service = SERVICES[name]
    assert (service["read_only"], service["cap_drop"]) == (True, ["ALL"])
    assert "no-new-privileges:true" in service["security_opt"]
