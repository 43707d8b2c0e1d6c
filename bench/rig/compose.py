"""A copy of the project in containers: a Compose project with free ports, and a machine run by systemd."""

import re
import shutil
import subprocess
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar

from bench.rig import images
from bench.rig.peers import free_port
from bench.rig.processes import ROOT, without_settings

T = TypeVar("T")
COMMAND_TIMEOUT_S = 900.0  # the longest one builds the image
WAIT_S = 180.0
AGAIN_S = 0.5
COMPOSE_FILES = ("docker-compose.yml", "deploy/compose/two-gateways.yml")
CAPABILITIES = (
    "SYS_ADMIN",
    "SYS_PTRACE",
    "NET_ADMIN",
)  # systemd makes mounts, users' and network namespaces for its units


class CommandFailed(Exception):
    """A command ended with another exit code than 0; the text is what it said."""


def until(look: Callable[[], T | None], timeout_s: float = WAIT_S) -> T:
    """The first result that is not None."""
    deadline = time.monotonic() + timeout_s
    while (found := look()) is None:
        if time.monotonic() > deadline:
            raise TimeoutError(f"nothing for {timeout_s:g} s")
        time.sleep(AGAIN_S)
    return found


def run(command: list[str], folder: Path, text: str | None = None, /, **environment: str) -> str:
    """What a command says."""
    done = subprocess.run(
        command,
        cwd=folder,
        env=without_settings() | {"no_proxy": "*"} | environment,
        input=text or "",
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
        timeout=COMMAND_TIMEOUT_S,
    )
    if done.returncode:
        raise CommandFailed(f"{' '.join(command)[:200]}\n{done.stdout[-5000:]}")
    return done.stdout


def checkout(folder: Path) -> None:
    """What a clone would hold, as it is here now."""
    for name in run(["git", "ls-files", "-z"], ROOT).split("\0"):
        if name and (ROOT / name).is_file():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, folder / name)


class Project:
    """`docker compose` in a checkout, under a name and with ports that nobody else has."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.name = f"series-gateway-{uuid.uuid4().hex[:8]}"
        self.ports: dict[int, int] = {}  # by the port of docker-compose.yml, ours
        for name in COMPOSE_FILES:
            path = folder / name
            path.write_text(re.sub(r'"127\.0\.0\.1:(\d+):', self._free, path.read_text()))

    def _free(self, found: re.Match[str]) -> str:
        port = self.ports.setdefault(int(found[1]), free_port())
        return f'"127.0.0.1:{port}:'

    def __call__(self, command: str, **environment: str) -> str:
        """What a line of a shell says; `docker compose` in it is this project's."""
        return run(["bash", "-ec", command], self.folder, COMPOSE_PROJECT_NAME=self.name, **environment)

    def url(self, port: int) -> str:
        """Of what docker-compose.yml publishes on this port."""
        return f"http://127.0.0.1:{self.ports[port]}"

    def inside(self, service: str, script: str) -> str:
        """What a script says in the container."""
        return run(
            ["docker", "compose", "exec", "-T", service, "sh", "-c", script],
            self.folder,
            COMPOSE_PROJECT_NAME=self.name,
        )

    def end(self) -> None:
        """Leave nothing of it."""
        files = [option for name in COMPOSE_FILES for option in ("-f", name)]
        profiles = ["--profile", "*"]
        end = ["down", "--volumes", "--remove-orphans", "--rmi", "local", "--timeout", "5"]
        run(["docker", "compose", *files, *profiles, *end], self.folder, COMPOSE_PROJECT_NAME=self.name)


@contextmanager
def project(folder: Path, *stand_ins: str) -> Iterator[Project]:
    """A checkout as a Compose project; what it started is stopped and removed at the end."""
    images.make(*stand_ins)
    checkout(folder)
    project = Project(folder)
    try:
        yield project
    finally:
        project.end()


class Machine:
    """A container whose first process is systemd, with a checkout at /root/series-gateway."""

    def __init__(self, folder: Path) -> None:
        self.name = f"series-gateway-{uuid.uuid4().hex[:8]}"
        self.port = free_port()
        self._folder = folder
        rights = [option for name in CAPABILITIES for option in ("--cap-add", name)]
        rights += ["--security-opt", "seccomp=unconfined", "--security-opt", "apparmor=unconfined"]
        mounts = [option for name in ("/run", "/run/lock", "/tmp", "/sys/fs/cgroup") for option in ("--tmpfs", name)]  # noqa: S108
        ports = ["--publish", f"127.0.0.1:{self.port}:6667"]
        command = [
            "docker",
            "run",
            "--detach",
            "--name",
            self.name,
            "--hostname",
            "machine",
            "--env",
            "container=docker",
        ]
        run([*command, "--cgroupns", "private", *rights, *mounts, *ports, images.SYSTEMD], folder)

    def __call__(self, script: str) -> str:
        """What a script says there, run by root."""
        return run(["docker", "exec", "--interactive", self.name, "bash", "-e"], self._folder, script)

    def started(self) -> None:
        """Until systemd has started what there is to start; "degraded" says that a service failed."""
        until(lambda: self("systemctl is-system-running --wait || true").strip() == "running" or None)

    def restart(self) -> None:
        """What a machine does that loses its power and gets it again."""
        run(["docker", "restart", "--time", "0", self.name], self._folder)
        self.started()

    def end(self) -> None:
        """Leave nothing of it."""
        run(["docker", "rm", "--force", "--volumes", self.name], self._folder)


@contextmanager
def machine(folder: Path) -> Iterator[Machine]:
    """A machine with systemd, on which nothing of ours is installed yet."""
    images.make("systemd")
    checkout(folder)
    machine = Machine(folder)
    try:
        machine.started()
        run(["docker", "cp", f"{folder}/.", f"{machine.name}:/root/series-gateway"], folder)
        yield machine
    finally:
        machine.end()
