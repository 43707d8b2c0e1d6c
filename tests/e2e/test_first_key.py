"""The first key of a server, and the gateway that has none: `keys create` shuts nobody out unasked."""

import json
import re
import shlex
import sys
from pathlib import Path

import httpx
import pytest

from api.cli.check import check
from bench.rig.processes import ROOT, server, start_gateway
from common.settings import ServerSettings
from tests.rig.commands import answer, server_command, status_of
from tests.rig.factories import make_report, make_state
from tests.rig.findings import said
from tests.rig.terminals import on_a_terminal, plain

READER = ("keys", "create", "ai", "--scope", "series:read")


def names(database_url: str) -> list[str]:
    return [key["name"] for key in answer(database_url, "keys", "list")]


def hear(url: str, *gateways: str) -> None:
    for gateway in gateways:
        httpx.put(f"{url}/gateways/{gateway}", json=make_state(gateway), trust_env=False).raise_for_status()


def post(url: str, key: str = "") -> int:
    headers = {"Authorization": f"Bearer {key}"} if key else {}
    return httpx.post(
        f"{url}/series", json=make_report("1").model_dump(mode="json"), headers=headers, trust_env=False
    ).status_code


@pytest.mark.slow
@pytest.mark.parametrize("scope", ["series:read", "metrics:read", "admin"])
def test_a_first_key_that_would_shut_a_gateway_out_is_not_made_unasked(
    tmp_path: Path, database_url: str, scope: str
) -> None:
    with server(tmp_path, DATABASE_URL=database_url) as (_, url):
        hear(url, "ct-room")
        refused = server_command(database_url, "keys", "create", "me", "--scope", scope)
        assert (refused.returncode, refused.stdout) == (1, "")
        assert "ct-room" in refused.stderr
        assert all(word in refused.stderr for word in ("--scope series:write", "--with-gateway", "--yes"))
        assert (names(database_url), post(url)) == ([], 201)


@pytest.mark.slow
def test_with_the_gateways_key_it_is_made(tmp_path: Path, database_url: str) -> None:
    with server(tmp_path, DATABASE_URL=database_url) as (_, url):
        hear(url, "ct-room")
        made = answer(database_url, *READER, "--with-gateway", "ct-room")
        assert (made["name"], made["gateway"]["name"]) == ("ai", "ct-room")
        assert made["gateway"]["scopes"] == "series:read series:write"
        assert (post(url), post(url, made["gateway"]["key"]), status_of(url, made["key"])) == (401, 201, 200)
        again = server_command(database_url, "keys", "create", "b", "--scope", "series:read", "--with-gateway", "x")
        assert (again.returncode, "no key was made for x" in again.stderr) == (0, True)
        assert sorted(names(database_url)) == ["ai", "b", "ct-room"]


@pytest.mark.slow
def test_said_to_be_meant_it_is_made(tmp_path: Path) -> None:
    database_url = f"sqlite+aiosqlite:///{tmp_path}/series.db"
    with server(tmp_path) as (_, url):
        hear(url, "ct-room")
        made = server_command(database_url, *READER, "--yes")
        assert (made.returncode, "ct-room is shut out" in made.stderr, "sgk_" in made.stdout) == (0, True, True)


@pytest.mark.slow
def test_where_no_gateway_is_known_a_script_goes_on_and_stderr_says_what_it_does(database_url: str) -> None:
    first = server_command(database_url, *READER, "--json")
    assert (first.returncode, json.loads(first.stdout)["name"]) == (0, "ai")
    assert "--scope series:write" in first.stderr
    second = server_command(database_url, *READER, "--json")
    assert (second.returncode, "no key may post reports" in second.stderr) == (0, True)


@pytest.mark.slow
def test_the_gateways_own_key_comes_with_what_has_to_be_done(tmp_path: Path) -> None:
    database_url = f"sqlite+aiosqlite:///{tmp_path}/series.db"
    gateways = ("keys", "create", "gw", "--scope", "series:write", "--scope", "series:read")
    with server(tmp_path) as (_, url):
        hear(url, "ct-room")
        made = server_command(database_url, *gateways)
        assert (made.returncode, "ct-room" in made.stderr, "GATEWAY_API_KEY_FILE" in made.stderr) == (0, True, True)
        assert server_command(database_url, *READER).stderr == ""  # nobody is shut out any more
        assert server_command(database_url, *gateways).stderr == ""


@pytest.mark.slow
def test_a_terminal_is_asked_and_the_gateways_key_is_offered(tmp_path: Path) -> None:
    database_url = f"sqlite+aiosqlite:///{tmp_path}/series.db"
    command = [sys.executable, str(ROOT / "server.py"), *READER]
    with server(tmp_path) as (_, url):
        hear(url, "ct-room")
        with on_a_terminal(command, tmp_path, width=200, DATABASE_URL=database_url) as terminal:
            terminal.wait_for("ct-room is shut out[^~]*the gateway's key as well")
            terminal.type("n\n")
            terminal.wait_for("this key alone")
            terminal.type("\n")
            assert terminal.ended() == 1
        assert names(database_url) == []
        with on_a_terminal(command, tmp_path, width=200, DATABASE_URL=database_url) as terminal:
            terminal.wait_for("the gateway's key as well")
            terminal.type("\n")
            terminal.wait_for("Name of the gateway")
            terminal.type("ct-room\n")
            assert terminal.ended() == 0
        keys = re.findall(r"sgk_\w+_[\w-]+", plain(terminal.written))
        assert (len(keys), names(database_url)) == (2, ["ct-room", "ai"])
        assert post(url, keys[0]) == 201


@pytest.mark.slow
async def test_what_check_and_the_server_advise_shuts_no_gateway_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The advice is followed beside a gateway that runs without a key: afterwards there is one that may post."""
    monkeypatch.chdir(tmp_path)
    database_url = f"sqlite+aiosqlite:///{tmp_path}/series.db"
    with server(tmp_path) as (_, url):
        told = said(await check(ServerSettings(database_url=database_url), "127.0.0.1", 9, url), "keys", "warning")
        headers = {"X-Forwarded-For": "10.0.0.1"}  # as from another machine
        async with httpx.AsyncClient(trust_env=False) as http:
            refused = (await http.get(f"{url}/series", headers=headers)).json()["detail"]
    for n, advice in enumerate((told, refused)):
        (arguments,) = re.findall(r"python server\.py ((?:[\w:-]+|NAME|FILE)(?: (?:[\w:-]+))*)", advice)
        url = f"sqlite+aiosqlite:///{tmp_path}/advised-{n}.db"
        followed = server_command(url, *shlex.split(arguments.replace("FILE", str(tmp_path / f"key-{n}"))))
        assert followed.returncode == 0, followed.stderr
        assert any("series:write" in key["scopes"] for key in answer(url, "keys", "list"))


@pytest.mark.slow
def test_a_gateway_that_runs_without_a_key_goes_on_delivering_after_a_reader_asked_for_one(tmp_path: Path) -> None:
    database_url = f"sqlite+aiosqlite:///{tmp_path}/series.db"
    with server(tmp_path) as (log, url):
        process, _ = start_gateway(tmp_path, url, environment={"GATEWAY_ID": "ct-room"})
        try:
            while not httpx.get(f"{url}/gateways", trust_env=False).json()["gateways"]:
                log.wait_for(lambda line: line)  # each of these requests is a line
            assert server_command(database_url, *READER).returncode == 1
            assert post(url) == 201
        finally:
            process.stop()
