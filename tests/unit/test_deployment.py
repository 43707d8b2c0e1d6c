"""What no container engine checks here: every path, port, variable and command of the deployment files exists."""

import ast
import json
import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from admin import command_line
from server import app
from settings import GatewaySettings, ServerSettings, variable

ROOT = Path(__file__).parents[2]
DOCKERFILE = (ROOT / "Dockerfile").read_text()
COMPOSE: dict[str, Any] = yaml.safe_load((ROOT / "docker-compose.yml").read_text())
SERVICES: dict[str, dict[str, Any]] = COMPOSE["services"]
OURS = [name for name, service in SERVICES.items() if "build" in service]
VARIABLES = {
    variable(cls, name): field for cls in (GatewaySettings, ServerSettings) for name, field in cls.model_fields.items()
}


def copied() -> list[str]:
    """Sources of every COPY from the build context."""
    lines = re.findall(r"^COPY (?!--from)(.+)$", DOCKERFILE, re.MULTILINE)
    return [source for line in lines for source in line.split()[:-1]]


def needed_modules(start: str) -> set[str]:
    """Our own modules that a module imports, and what those import."""
    tree = ast.parse((ROOT / f"{start}.py").read_text())
    names = {str(node.module) for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
    names |= {alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names}
    ours = {name for name in names if (ROOT / f"{name}.py").exists()}
    return {start}.union(*(needed_modules(name) for name in ours))


def default(field: Any) -> str:
    if field.default is None or field.default_factory:
        return ""
    value = f"{field.default:g}" if isinstance(field.default, float) else str(field.default)
    return value.rstrip("/")


def test_every_copied_path_exists() -> None:
    assert copied()
    assert [path for path in copied() if not list(ROOT.glob(path))] == []


def test_no_copied_path_is_ignored() -> None:
    allowed = re.findall(r"^!(\S+)$", (ROOT / ".dockerignore").read_text(), re.MULTILINE)
    assert [path for path in copied() if not any(Path(path).match(pattern) for pattern in allowed)] == []


@pytest.mark.parametrize("process", ["client", "server"])
def test_the_image_holds_every_module_that_runs(process: str) -> None:
    held = {path.name for pattern in copied() for path in ROOT.glob(pattern)}
    assert {f"{module}.py" for module in needed_modules(process)} <= held


def test_the_last_user_is_not_root() -> None:
    assert re.findall(r"^USER (\S+)$", DOCKERFILE, re.MULTILINE)[-1] == "gateway"
    assert not any("user" in SERVICES[name] for name in OURS)


def test_commands_name_what_exists() -> None:
    assert SERVICES["client"]["command"] == ["python", "client.py"]
    assert SERVICES["server"]["command"][:2] == ["uvicorn", "server:app"]
    assert app.title
    python, script, *arguments = SERVICES["keys"]["command"]
    assert (python, script) == ("python", "server.py")
    command_line().make_context("server.py", arguments, resilient_parsing=True)
    create = command_line().commands["keys"].commands["create"]  # type: ignore[attr-defined]
    given = create.make_context("create", arguments[2:]).params
    assert given["scopes"] == ("series:write", "series:read")
    assert str(given["save"]) == SERVICES["client"]["environment"]["GATEWAY_API_KEY_FILE"]
    assert json.loads(re.findall(r"^CMD (.+)$", DOCKERFILE, re.MULTILINE)[-1]) == ["python", "client.py"]


def test_every_variable_in_compose_is_a_setting() -> None:
    named = {name for service in OURS for name in SERVICES[service].get("environment", {})}
    assert named
    assert named <= VARIABLES.keys()


def test_every_variable_in_compose_is_accepted() -> None:
    gateway = {name.removeprefix("GATEWAY_").lower(): v for name, v in SERVICES["client"]["environment"].items()}
    assert GatewaySettings(**gateway).scp_host == "0.0.0.0"  # noqa: S104 - inside the container
    ServerSettings(database_url=SERVICES["server"]["environment"]["DATABASE_URL"])


def test_env_example_holds_every_setting_with_its_default() -> None:
    example = dict(re.findall(r"^# ([A-Z_]+)=(.*)$", (ROOT / ".env.example").read_text(), re.MULTILINE))
    assert example == {name: default(field) for name, field in VARIABLES.items()}


def test_readme_holds_every_setting_with_its_default() -> None:
    rows = re.findall(r"^\| `([A-Z_]+)` \| (.+?) \|", (ROOT / "README.md").read_text(), re.MULTILINE)
    assert {name: value.strip("` ") for name, value in rows if name != "GATEWAY_ID"} == {
        name: default(field) for name, field in VARIABLES.items() if name != "GATEWAY_ID"
    }


def test_published_ports_are_those_the_processes_listen_on_and_reach_this_machine_only() -> None:
    published = {name: service["ports"] for name, service in SERVICES.items() if "ports" in service}
    command = SERVICES["server"]["command"]
    server_port = command[command.index("--port") + 1]
    scp_port = GatewaySettings.model_fields["scp_port"].default
    assert published == {
        "orthanc": ["127.0.0.1:4242:4242", "127.0.0.1:8042:8042"],
        "server": [f"127.0.0.1:{server_port}:{server_port}"],
        "client": [f"127.0.0.1:{scp_port}:{scp_port}"],
    }
    assert SERVICES["client"]["environment"]["GATEWAY_SERVER_URL"] == f"http://server:{server_port}"


def test_orthanc_knows_the_gateway() -> None:
    configuration = json.loads(SERVICES["orthanc"]["environment"]["ORTHANC_JSON"])
    fields = GatewaySettings.model_fields
    assert configuration["DicomModalities"] == {
        "GATEWAY": [fields["ae_title"].default, "client", fields["scp_port"].default]
    }


def test_orthanc_and_the_health_check_may_send() -> None:
    gateway = {name.removeprefix("GATEWAY_").lower(): v for name, v in SERVICES["client"]["environment"].items()}
    health_check = SERVICES["client"]["healthcheck"]["test"][-1]
    (ae_title,) = re.findall(r'AE\("(\w+)"\)', health_check)
    assert GatewaySettings(**gateway).may_associate(ae_title, "127.0.0.1")
    assert GatewaySettings(**gateway).may_associate("ORTHANC", "172.18.0.2")  # Orthanc's own default title
    assert not GatewaySettings(**gateway).may_associate("SOMEONE", "172.18.0.2")


def test_images_are_pinned() -> None:
    images = [service["image"] for service in SERVICES.values() if "image" in service]
    images += re.findall(r"^FROM (\S+)", DOCKERFILE, re.MULTILINE)
    assert all(re.search(r":\d+\.\d+", image) for image in images)


def test_volumes_and_dependencies_are_declared() -> None:
    mounts = [mount.split(":") for service in SERVICES.values() for mount in service.get("volumes", [])]
    assert {name for name, *_ in mounts} == COMPOSE["volumes"].keys()
    assert {path for name in OURS for _, path, *_ in [m.split(":") for m in SERVICES[name]["volumes"]]} == set(
        re.findall(r" (/\w+)", re.findall("install -d .*", DOCKERFILE)[0])
    )
    assert {needed for s in SERVICES.values() for needed in s.get("depends_on", {})} <= SERVICES.keys()
    assert "VOLUME /data" in DOCKERFILE
    assert "sqlite+aiosqlite:////data/" in SERVICES["server"]["environment"]["DATABASE_URL"]
    assert SERVICES["keys"]["environment"]["DATABASE_URL"] == SERVICES["server"]["environment"]["DATABASE_URL"]


@pytest.mark.parametrize("name", SERVICES.keys() - {"keys"})  # which runs once
def test_every_service_has_a_health_check(name: str) -> None:
    command, *arguments = SERVICES[name]["healthcheck"]["test"][1:]
    if command == "python":
        ast.parse(arguments[1])


def test_health_checks_ask_what_exists() -> None:
    assert any(getattr(route, "path", "") == "/health/ready" for route in app.routes)
    assert "/health/ready" in SERVICES["server"]["healthcheck"]["test"][-1]


def test_the_gateway_has_time_to_drain() -> None:
    grace_s = int(SERVICES["client"]["stop_grace_period"].removesuffix("s"))
    assert grace_s > 2 * GatewaySettings.model_fields["drain_timeout_s"].default


@pytest.mark.parametrize("name", OURS)
def test_our_containers_have_no_more_rights_than_they_need(name: str) -> None:
    service = SERVICES[name]
    assert (service["read_only"], service["cap_drop"]) == (True, ["ALL"])
    assert "no-new-privileges:true" in service["security_opt"]
