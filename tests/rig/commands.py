"""The commands of gateway and server, run as an operator runs them."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx

from bench.rig import warm
from bench.rig.processes import ROOT, server

NOWHERE = "http://127.0.0.1:9"
"""A server's URL at which nobody listens."""


def client(folder: Path, *arguments: str, exit_code: int = 0, url: str = NOWHERE) -> str:
    """Run `python client.py …` there and return what it printed."""
    command = [sys.executable, str(ROOT / "client.py"), "--server-url", url, "--drain-timeout-s", "5", *arguments]
    done = warm.run(command, cwd=folder)
    assert done.returncode == exit_code, done.stdout + done.stderr
    return done.stdout + (done.stderr if exit_code else "")


def client_json(folder: Path, *arguments: str, exit_code: int = 0, url: str = NOWHERE) -> Any:
    """Runs it with --json and returns what that was."""
    out = client(folder, *arguments, "--json", exit_code=exit_code, url=url)
    return json.JSONDecoder().raw_decode(out)[0]


def server_command(url: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    """`python server.py` with these arguments."""
    environment = {k: v for k, v in os.environ.items() if not k.startswith("SERVER_")} | {"DATABASE_URL": url}
    command = [sys.executable, str(ROOT / "server.py"), *arguments]
    return warm.run(command, env=environment)


def answer(url: str, *arguments: str) -> Any:
    """Returns what such a command prints as JSON; it has to succeed."""
    done = server_command(url, *arguments, "--json")
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def status_of(url: str, key: str) -> int:
    """Returns the HTTP status of a read with this key."""
    return httpx.get(f"{url}/series", headers={"Authorization": f"Bearer {key}"}, trust_env=False).status_code


@contextmanager
def served(folder: Path, url: str, when: bool) -> Iterator[None]:
    """Runs a server on this database, or none."""
    if not when:
        yield
        return
    with server(folder, DATABASE_URL=url):
        yield
