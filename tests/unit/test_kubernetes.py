"""What no cluster checks here: deploy/kubernetes fits Kubernetes' schema, itself, our settings and our processes."""

import asyncio
import re
import subprocess
import sys
from collections.abc import Iterator
from ipaddress import ip_network
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import kubernetes_validate  # type: ignore[import-untyped]
import pytest
import yaml

from common.control import serve_control
from common.settings import GatewaySettings, ServerSettings, Settings, SettingsError, load, variable
from server import app
from tests.rig.papers import KUBERNETES

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / "deploy" / "kubernetes"
DOCKERFILE = (ROOT / "Dockerfile").read_text()
KUSTOMIZATION: dict[str, Any] = yaml.safe_load((FOLDER / "kustomization.yaml").read_text())
OBJECTS: list[dict[str, Any]] = [
    document for file in KUSTOMIZATION["resources"] for document in yaml.safe_load_all((FOLDER / file).read_text())
]
VERSIONS = ["1.30", "1.37"]  # as docs/kubernetes.md says: the oldest that will do, and a recent one
UNITS = {"Ki": 2**10, "Mi": 2**20, "Gi": 2**30}
SETTINGS: dict[str, type[Settings]] = {"gateway": GatewaySettings, "server": ServerSettings}
# Of secrets only their form is known here.
SECRETS = {("database", "url"): "postgresql+asyncpg://user:password@database/series?ssl=verify-full"}


def of_kind(*kinds: str) -> dict[str, dict[str, Any]]:
    return {o["metadata"]["name"]: o for o in OBJECTS if o["kind"] in kinds}


WORKLOADS = of_kind("StatefulSet", "Deployment")
PODS: dict[str, dict[str, Any]] = {name: workload["spec"]["template"] for name, workload in WORKLOADS.items()}
CONTAINERS: dict[str, dict[str, Any]] = {name: pod["spec"]["containers"][0] for name, pod in PODS.items()}
SERVICES = of_kind("Service")
POLICIES = of_kind("NetworkPolicy")
CONFIG_MAPS = {generated["name"]: generated for generated in KUSTOMIZATION["configMapGenerator"]}


def selected(selector: dict[str, str]) -> list[str]:
    """The workloads whose pods have these labels."""
    return [name for name, pod in PODS.items() if selector.items() <= pod["metadata"]["labels"].items()]


def env_file(name: str) -> dict[str, str]:
    lines = [line for file in CONFIG_MAPS[name]["envs"] for line in (FOLDER / file).read_text().splitlines()]
    return dict(line.split("=", 1) for line in lines if line and not line.startswith("#"))


def variables(name: str) -> dict[str, str]:
    """The environment that a container of this workload gets, besides the image's."""
    container = CONTAINERS[name]
    found = {
        k: v for source in container.get("envFrom", []) for k, v in env_file(source["configMapRef"]["name"]).items()
    }
    for entry in container.get("env", []):
        match entry:
            case {"value": value}:
                found[entry["name"]] = value
            case {"valueFrom": {"fieldRef": {"fieldPath": "metadata.name"}}}:
                found[entry["name"]] = f"{name}-0"
            case {"valueFrom": {"secretKeyRef": {"name": secret, "key": key}}}:
                found[entry["name"]] = SECRETS[secret, key]
    return found


def settings(name: str, monkeypatch: pytest.MonkeyPatch, folder: Path, **more: str) -> Any:
    """The process's settings as it would read them in its pod."""
    with monkeypatch.context() as patch:
        for cls in SETTINGS.values():
            for field in cls.model_fields:
                patch.delenv(variable(cls, field), raising=False)
        for key, value in (variables(name) | more).items():
            patch.setenv(key, value)
        patch.chdir(folder)  # without a .env
        return load(SETTINGS[name])


def mounted(name: str) -> dict[str, str]:
    """Files that a pod finds in its volumes: path to secret/key or configMap/key."""
    volumes = {volume["name"]: volume for volume in PODS[name]["spec"].get("volumes", [])}
    found = {}
    for mount in CONTAINERS[name]["volumeMounts"]:
        for source in volumes.get(mount["name"], {}).get("projected", {}).get("sources", []):
            for kind, content in source.items():
                for item in content["items"]:
                    found[f"{mount['mountPath']}/{item['path']}"] = f"{kind}/{content['name']}/{item['key']}"
    return found


def size(quantity: str) -> int:
    return int(quantity[:-2]) * UNITS[quantity[-2:]]


def texts(value: Any) -> Iterator[str]:
    if isinstance(value, dict | list):
        for inner in value.values() if isinstance(value, dict) else value:
            yield from texts(inner)
    else:
        yield str(value)


def flag(command: list[str], name: str) -> str:
    return command[command.index(name) + 1]


# --- the files ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("document", OBJECTS, ids=lambda o: f"{o['kind']}-{o['metadata']['name']}")
def test_every_object_fits_the_schema(document: dict[str, Any], version: str) -> None:
    assert kubernetes_validate.validate(document, version, strict=True) == version


def test_the_kustomization_names_every_file_and_no_other() -> None:
    named = list(KUSTOMIZATION["resources"])
    named += [
        file for generated in CONFIG_MAPS.values() for file in generated.get("envs", []) + generated.get("files", [])
    ]
    present = {str(path.relative_to(FOLDER)) for path in FOLDER.rglob("*") if "__pycache__" not in path.parts}
    assert sorted(named) == sorted(present - {"kustomization.yaml"})


def test_every_object_is_of_the_one_namespace() -> None:
    assert list(of_kind("Namespace")) == [KUSTOMIZATION["namespace"]]
    assert not any("namespace" in o["metadata"] for o in OBJECTS)
    names = [(o["kind"], o["metadata"]["name"]) for o in OBJECTS]
    assert len(names) == len(set(names))


def test_what_a_site_has_to_set_can_be_found() -> None:
    for path in FOLDER.iterdir():
        lines = path.read_text().splitlines() if path.is_file() else []
        for before, line in zip(["", *lines], lines, strict=False):
            if re.search(r"192\.0\.2\.|198\.51\.100\.|\.example\b", line):
                assert "SITE" in before + line, f"{path.name}: {line}"
    assert "grep -rn SITE deploy/kubernetes" in KUBERNETES


def test_images_are_set_by_kustomize_and_pinned() -> None:
    (image,) = KUSTOMIZATION["images"]
    assert {container["image"] for container in CONTAINERS.values()} == {image["name"]}
    assert re.fullmatch(r"\d+\.\d+\.\d+", image["newTag"])
    assert f'version = "{image["newTag"]}"' in (ROOT / "pyproject.toml").read_text()


# --- settings and secrets ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", SETTINGS)
def test_every_variable_is_a_setting(name: str) -> None:
    known = {variable(SETTINGS[name], field) for field in SETTINGS[name].model_fields}
    assert variables(name)
    assert variables(name).keys() - known == ({"PGSSLROOTCERT"} if name == "server" else set())


@pytest.mark.parametrize("name", SETTINGS)
def test_settings_are_accepted(name: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    settings(name, monkeypatch, tmp_path)


@pytest.mark.parametrize("name", SETTINGS)
def test_variables_of_services_would_stop_the_start_and_are_kept_out(
    name: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    with pytest.raises(SettingsError, match="unknown setting"):
        settings(name, monkeypatch, tmp_path, **{f"{name.upper()}_PORT": "tcp://10.0.0.1:6667"})
    assert PODS[name]["spec"]["enableServiceLinks"] is False


def test_reports_name_their_gateway() -> None:
    assert variables("gateway")["GATEWAY_ID"] == "gateway-0"


def test_no_secret_is_here() -> None:
    assert not of_kind("Secret")
    assert "secretGenerator" not in KUSTOMIZATION
    assert not any("API_KEY" in name and "FILE" not in name for name in variables("gateway"))
    literals = [text for o in OBJECTS for text in texts(o)] + list(env_file("gateway").values())
    assert not any(re.search(r"sgk_|-----BEGIN|://[^/]*:[^/]*@", text) for text in literals)


def test_the_guide_makes_every_secret_with_every_key() -> None:
    needed = {tuple(source.split("/")[1:]) for name in PODS for source in mounted(name).values() if "secret/" in source}
    needed |= SECRETS.keys()
    for secret, key in needed:
        (command,) = re.findall(rf"create secret generic {secret} (?:.*\\\n)*.*", KUBERNETES)
        assert re.search(rf"--from-(?:file|literal)={re.escape(key)}\b", command), (secret, key)


def test_files_that_processes_read_are_mounted_and_follow_their_secrets() -> None:
    gateway, server = variables("gateway"), variables("server")
    assert mounted("gateway")[gateway["GATEWAY_API_KEY_FILE"]] == "secret/gateway-key/key"
    assert mounted("gateway")[gateway["GATEWAY_SERVER_CA"]] == "secret/server-tls/ca.crt"
    assert "secret/server-tls/tls.key" not in mounted("gateway").values()
    assert mounted("server")[server["PGSSLROOTCERT"]] == "secret/database/ca.crt"
    arguments = CONTAINERS["server"]["args"]
    assert mounted("server")[flag(arguments, "--ssl-certfile")] == "secret/server-tls/tls.crt"
    assert mounted("server")[flag(arguments, "--ssl-keyfile")] == "secret/server-tls/tls.key"
    assert not any("subPath" in mount for container in CONTAINERS.values() for mount in container["volumeMounts"])


# --- pods ----------------------------------------------------------------------------------------------------------


def test_commands_are_those_of_the_image() -> None:
    assert CONTAINERS["gateway"]["command"] == ["python", "client.py"]
    assert CONTAINERS["server"]["command"][:2] == ["uvicorn", "server:app"]
    assert all(len(pod["spec"]["containers"]) == 1 for pod in PODS.values())


@pytest.mark.parametrize("name", PODS)
def test_a_pod_has_no_more_rights_than_it_needs(name: str) -> None:
    (uid,) = map(int, re.findall(r"useradd --uid (\d+)", DOCKERFILE))
    pod, container = PODS[name]["spec"]["securityContext"], CONTAINERS[name]["securityContext"]
    assert (pod["runAsNonRoot"], pod["runAsUser"], pod["runAsGroup"], pod["fsGroup"]) == (True, uid, uid, uid)
    assert pod["seccompProfile"] == {"type": "RuntimeDefault"}
    assert container == {
        "allowPrivilegeEscalation": False,
        "readOnlyRootFilesystem": True,
        "capabilities": {"drop": ["ALL"]},
    }
    assert PODS[name]["spec"]["automountServiceAccountToken"] is False
    assert of_kind("Namespace").popitem()[1]["metadata"]["labels"]["pod-security.kubernetes.io/enforce"] == "restricted"


@pytest.mark.parametrize("name", PODS)
def test_every_mount_has_its_volume_and_temporary_files_a_place(name: str) -> None:
    claims = [claim["metadata"]["name"] for claim in WORKLOADS[name]["spec"].get("volumeClaimTemplates", [])]
    volumes = [volume["name"] for volume in PODS[name]["spec"]["volumes"]]
    mounts = {mount["mountPath"]: mount["name"] for mount in CONTAINERS[name]["volumeMounts"]}
    assert sorted(mounts.values()) == sorted(claims + volumes)
    (tmp,) = (volume for volume in PODS[name]["spec"]["volumes"] if volume["name"] == mounts["/tmp"])  # noqa: S108
    assert "emptyDir" in tmp
    maps = {source.split("/")[1]: source.split("/")[2] for source in mounted(name).values() if "configMap/" in source}
    assert all(key in CONFIG_MAPS[config_map]["files"] for config_map, key in maps.items())


def test_each_gateway_has_a_journal_of_its_own_that_fits_its_volume_and_is_kept(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    of_gateway = settings("gateway", monkeypatch, tmp_path)
    workload = WORKLOADS["gateway"]
    (claim,) = workload["spec"]["volumeClaimTemplates"]
    mounts = {mount["name"]: mount["mountPath"] for mount in CONTAINERS["gateway"]["volumeMounts"]}
    assert workload["kind"] == "StatefulSet"
    assert str(of_gateway.journal_path.parent) == mounts[claim["metadata"]["name"]]
    assert of_gateway.workers == 1  # the probe asks one journal's socket
    assert size(claim["spec"]["resources"]["requests"]["storage"]) > (
        of_gateway.journal_max_bytes + of_gateway.min_free_bytes
    )
    assert set(workload["spec"]["persistentVolumeClaimRetentionPolicy"].values()) == {"Retain"}


def test_the_gateway_has_time_to_drain(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    drain_timeout_s = settings("gateway", monkeypatch, tmp_path).drain_timeout_s
    before_s = CONTAINERS["gateway"]["lifecycle"]["preStop"]["sleep"]["seconds"]
    assert PODS["gateway"]["spec"]["terminationGracePeriodSeconds"] > before_s + 2 * drain_timeout_s


def test_the_server_has_time_to_finish() -> None:
    before_s = CONTAINERS["server"]["lifecycle"]["preStop"]["sleep"]["seconds"]
    finish_s = int(flag(CONTAINERS["server"]["command"], "--timeout-graceful-shutdown"))
    assert PODS["server"]["spec"]["terminationGracePeriodSeconds"] > before_s + finish_s


@pytest.mark.parametrize("name", WORKLOADS)
def test_one_pod_of_several_goes_at_a_time(name: str) -> None:
    spec = WORKLOADS[name]["spec"]
    assert spec["replicas"] >= 2
    assert spec.get("updateStrategy", spec.get("strategy"))["rollingUpdate"]["maxUnavailable"] <= 1
    assert of_kind("PodDisruptionBudget")[name]["spec"]["maxUnavailable"] == 1
    assert PODS[name]["spec"]["topologySpreadConstraints"]


@pytest.mark.parametrize("name", PODS)
def test_resources_are_bounded(name: str) -> None:
    requests, limits = (CONTAINERS[name]["resources"][which] for which in ("requests", "limits"))
    assert size(requests["memory"]) <= size(limits["memory"])
    assert requests.keys() == limits.keys() == {"cpu", "memory"}


# --- probes --------------------------------------------------------------------------------------------------------


def test_probes_of_the_server_ask_what_exists() -> None:
    container = CONTAINERS["server"]
    probes = {kind: container[f"{kind}Probe"]["httpGet"] for kind in ("startup", "liveness", "readiness")}
    paths = {path for path, of in app.openapi()["paths"].items() if "get" in of}
    assert {probe["path"] for probe in probes.values()} <= paths
    assert (probes["liveness"]["path"], probes["readiness"]["path"]) == ("/health/live", "/health/ready")
    assert {probe["scheme"] for probe in probes.values()} == {"HTTPS"}  # --ssl-certfile
    assert {probe["port"] for probe in probes.values()} <= {port["name"] for port in container["ports"]}


@pytest.mark.parametrize(("kind", "taken"), [("startup", True), ("liveness", True), ("readiness", False)])
async def test_probes_of_the_gateway_ask_it(kind: str, taken: bool, tmp_path: Path) -> None:
    python, *arguments = CONTAINERS["gateway"][f"{kind}Probe"]["exec"]["command"]
    (script,) = (argument for argument in arguments if argument.endswith(".py"))
    assert python == "python"
    assert mounted("gateway")[script] == "configMap/gateway-probe/probe.py"
    arguments[arguments.index(script)] = str(FOLDER / "probe.py")
    ready = False

    async def status() -> dict[str, Any]:
        return {"running": True, "ready": ready, "reason": None if ready else "max_pending_instances=1 reached"}

    async def asked() -> tuple[int | None, str]:
        probe = await asyncio.create_subprocess_exec(
            sys.executable,
            *arguments,
            env={"GATEWAY_JOURNAL_PATH": str(tmp_path / "journal.db")},
            stderr=asyncio.subprocess.PIPE,
        )
        _, said = await probe.communicate()
        return probe.returncode, said.decode()

    code, said = await asked()
    assert (code, said.startswith("no answer:")) == (1, True)
    async with serve_control(tmp_path / "journal.db", {"status": status}):
        assert await asked() == ((0, "") if taken else (1, "not ready: max_pending_instances=1 reached\n"))
        ready = True
        assert await asked() == (0, "")


def test_a_gateway_that_hangs_is_given_up_and_one_that_starts_has_time() -> None:
    timeout_s = float(re.findall(r"^TIMEOUT_S = (.+)$", (FOLDER / "probe.py").read_text(), re.MULTILINE)[0])
    probes = [CONTAINERS["gateway"][f"{kind}Probe"] for kind in ("startup", "liveness", "readiness")]
    assert all(probe["timeoutSeconds"] > timeout_s for probe in probes)
    start_s, hang_s = (probe["periodSeconds"] * probe["failureThreshold"] for probe in probes[:2])
    assert start_s >= 300
    assert 60 <= hang_s <= 300


# --- services and network ------------------------------------------------------------------------------------------


def test_ports_are_those_the_processes_listen_on(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    of_gateway = settings("gateway", monkeypatch, tmp_path)
    server_port = int(flag(CONTAINERS["server"]["command"], "--port"))
    ports = {name: [port["containerPort"] for port in container["ports"]] for name, container in CONTAINERS.items()}
    assert ports == {"gateway": [of_gateway.scp_port, of_gateway.metrics_port], "server": [server_port]}
    assert of_gateway.metrics_host == of_gateway.scp_host
    assert of_gateway.scp_port == GatewaySettings.model_fields["scp_port"].default
    assert of_gateway.scp_host == flag(CONTAINERS["server"]["command"], "--host") == "0.0.0.0"  # noqa: S104 - a pod
    assert str(of_gateway.server_url) == f"https://server.{KUSTOMIZATION['namespace']}.svc:{server_port}/"
    assert f"DNS:server.{KUSTOMIZATION['namespace']}.svc" in KUBERNETES  # the certificate's name
    assert not of_gateway.exposes_key


@pytest.mark.parametrize("name", WORKLOADS)
def test_a_workload_selects_its_own_pods(name: str) -> None:
    assert selected(WORKLOADS[name]["spec"]["selector"]["matchLabels"]) == [name]
    for constraint in PODS[name]["spec"]["topologySpreadConstraints"]:
        assert selected(constraint["labelSelector"]["matchLabels"]) == [name]


@pytest.mark.parametrize(
    ("service", "workload"), [("gateway", "gateway"), ("dicom", "gateway"), ("server", "server"), ("servers", "server")]
)
def test_a_service_selects_existing_pods_and_their_ports(service: str, workload: str) -> None:
    spec = SERVICES[service]["spec"]
    names = {port["name"]: port["containerPort"] for port in CONTAINERS[workload]["ports"]}
    assert selected(spec["selector"]) == [workload]
    assert [port["port"] for port in spec["ports"]] == [names[port["targetPort"]] for port in spec["ports"]]


def test_services_are_what_they_are_for() -> None:
    assert SERVICES.keys() == {"gateway", "dicom", "server", "servers"}
    for name in ("gateway", "servers"):  # a name with all addresses, of pods that are not ready too
        assert SERVICES[name]["spec"]["clusterIP"] == "None"
        assert SERVICES[name]["spec"]["publishNotReadyAddresses"] is True
    assert WORKLOADS["gateway"]["spec"]["serviceName"] == "gateway"
    assert SERVICES["dicom"]["spec"]["type"] == "LoadBalancer"
    assert SERVICES["dicom"]["spec"]["externalTrafficPolicy"] == "Local"
    assert "type" not in SERVICES["server"]["spec"]  # ClusterIP: not to be reached from outside


@pytest.mark.parametrize("budget", of_kind("PodDisruptionBudget"))
def test_a_disruption_budget_selects_existing_pods(budget: str) -> None:
    assert selected(of_kind("PodDisruptionBudget")[budget]["spec"]["selector"]["matchLabels"]) == [budget]


def test_what_no_policy_allows_is_denied() -> None:
    everyone = [policy["spec"] for policy in POLICIES.values() if policy["spec"]["podSelector"] == {}]
    assert {"podSelector": {}, "policyTypes": ["Ingress", "Egress"]} in everyone
    for policy in POLICIES.values():
        for way, types in (("ingress", "Ingress"), ("egress", "Egress")):
            assert way not in policy["spec"] or types in policy["spec"]["policyTypes"]
            assert all(rule.keys() & {"from", "to"} and rule["ports"] for rule in policy["spec"].get(way, []))


@pytest.mark.parametrize("name", PODS)
def test_a_policy_selects_existing_pods_and_their_ports(name: str) -> None:
    spec = POLICIES[name]["spec"]
    own = {port["containerPort"] for port in CONTAINERS[name]["ports"]}
    assert selected(spec["podSelector"]["matchLabels"]) == [name]
    assert {port["port"] for rule in spec["ingress"] for port in rule["ports"]} == own
    for rule in spec["ingress"] + spec["egress"]:
        for peer in rule.get("from", []) + rule.get("to", []):
            if "podSelector" in peer:
                (other,) = selected(peer["podSelector"]["matchLabels"])
                ports = CONTAINERS[other if "to" in rule else name]["ports"]
                assert {port["port"] for port in rule["ports"]} == {port["containerPort"] for port in ports}


def test_policies_let_through_what_the_settings_name(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    of_gateway = settings("gateway", monkeypatch, tmp_path)
    spec = POLICIES["gateway"]["spec"]
    senders = {peer["ipBlock"]["cidr"] for rule in spec["ingress"] for peer in rule["from"] if "ipBlock" in peer}
    assert senders == set(SERVICES["dicom"]["spec"]["loadBalancerSourceRanges"])
    assert senders == {entry.rpartition("@")[2] for entry in of_gateway.allowed_peers.split(",")}
    asked = {
        (str(ip_network(peer["ipBlock"]["cidr"]).network_address), port["port"])
        for rule in spec["egress"]
        for peer in rule["to"]
        if "ipBlock" in peer
        for port in rule["ports"]
    }
    assert asked == {(peer.host, peer.port) for peer in of_gateway.pacs_by_ae_title.values()}
    assert all(of_gateway.may_associate(peer.ae_title, peer.host) for peer in of_gateway.pacs_by_ae_title.values())


# --- Prometheus and traces -----------------------------------------------------------------------------------------


def scraped() -> dict[str, dict[str, Any]]:
    """The guide's jobs."""
    (block,) = re.findall(r"```yaml\n(scrape_configs:.*?)```", KUBERNETES, re.DOTALL)
    return {job["job_name"]: job for job in yaml.safe_load(block)["scrape_configs"]}


@pytest.mark.parametrize(("job", "service"), [("gateway", "gateway"), ("server", "servers")])
def test_prometheus_finds_every_pod_and_is_let_in(
    job: str, service: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (found,) = scraped()[job]["dns_sd_configs"]
    assert found["names"] == [f"{service}.{KUSTOMIZATION['namespace']}.svc"]
    assert selected(SERVICES[service]["spec"]["selector"]) == [job]
    assert found["port"] in [port["port"] for port in SERVICES[service]["spec"]["ports"]]
    (label,) = re.findall(r"kubectl label namespace monitoring (\S+)=true", KUBERNETES)
    let_in = {
        port["port"]
        for rule in POLICIES[job]["spec"]["ingress"]
        for peer in rule["from"]
        if peer == {"namespaceSelector": {"matchLabels": {label: "true"}}}
        for port in rule["ports"]
    }
    assert let_in == {found["port"]}
    assert settings("gateway", monkeypatch, tmp_path).metrics_port == scraped()["gateway"]["dns_sd_configs"][0]["port"]


def test_prometheus_shows_the_server_its_key_and_checks_its_certificate() -> None:
    plain = yaml.safe_load((ROOT / "deploy" / "prometheus" / "prometheus.yml").read_text())
    on_compose = {job["job_name"]: job for job in plain["scrape_configs"]}
    jobs = scraped()
    assert jobs.keys() == on_compose.keys()
    for same in ("metrics_path", "authorization"):
        assert jobs["server"][same] == on_compose["server"][same]
    assert jobs["server"]["scheme"] == "https"
    assert f"DNS:{jobs['server']['tls_config']['server_name']}" in KUBERNETES


@pytest.mark.peer("promtool")
def test_promtool_takes_the_guides_jobs(tmp_path: Path) -> None:
    config = tmp_path / "prometheus.yml"
    config.write_text(yaml.safe_dump({"scrape_configs": list(scraped().values())}))
    check = ["promtool", "check", "config", "--syntax-only", str(config)]
    done = subprocess.run(check, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def test_traces_are_sent_once_what_is_marked_is_uncommented() -> None:
    env, server, network = (uncommented(name) for name in ("gateway.env", "server.yaml", "network.yaml"))
    (endpoint,) = re.findall(r"^OTEL_EXPORTER_OTLP_ENDPOINT=(.+)$", env, re.MULTILINE)
    deployment = next(d for d in yaml.safe_load_all(server) if d["kind"] == "Deployment")
    given = deployment["spec"]["template"]["spec"]["containers"][0]["env"]
    assert {"name": "OTEL_EXPORTER_OTLP_ENDPOINT", "value": endpoint} in given
    (policy,) = [p for p in yaml.safe_load_all(network) if p["metadata"]["name"] == "traces"]
    for version in VERSIONS:
        kubernetes_validate.validate(policy, version, strict=True)
        kubernetes_validate.validate(deployment, version, strict=True)
    (rule,) = policy["spec"]["egress"]
    host = urlsplit(endpoint)
    assert [port["port"] for port in rule["ports"]] == [host.port]
    (peer,) = rule["to"]
    assert peer["namespaceSelector"]["matchLabels"] == {"kubernetes.io/metadata.name": str(host.hostname).split(".")[1]}


def uncommented(name: str) -> str:
    """A file as it is after the block of comments that begins with traces became real."""
    blocks = re.findall(r"(?:^ *# .*\n)+", (FOLDER / name).read_text(), re.MULTILINE)
    (block,) = [block for block in blocks if "SITE: traces" in block]
    real = re.sub(r"^( *)# (?!SITE)", r"\1", block, flags=re.MULTILINE)
    return (FOLDER / name).read_text().replace(block, real)
