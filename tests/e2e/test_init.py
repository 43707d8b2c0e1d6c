"""`init` of server and gateway, on a terminal and without one; two folders as two machines; the page that says so."""

import json
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path

import httpx
import pytest
from pynetdicom import AE
from pynetdicom.sop_class import Verification  # type: ignore[attr-defined]

from bench.rig import warm
from bench.rig.peers import free_port, orthanc
from bench.rig.processes import ROOT, Process, running, without_settings
from tests.rig.factories import SERIES, make_dataset
from tests.rig.findings import is_well
from tests.rig.papers import commands, filled
from tests.rig.sending import new_series, send, write
from tests.rig.terminals import Terminal, on_a_terminal, plain

PYTHON = sys.executable
GUIDE = ROOT / "docs" / "first-day.md"
CLIENT, SERVER = [PYTHON, str(ROOT / "client.py")], [PYTHON, str(ROOT / "server.py")]
KEY = "sgk_0123456789ab_n0b0dy-may-see-this"
GATEWAY_FLAGS = ["--scp-host", "127.0.0.1", "--server-url", "http://127.0.0.1:9"]


def done(
    folder: Path, command: list[str], *, stdin: str = "", code: int = 0, **environment: str
) -> subprocess.CompletedProcess[str]:
    """The command, without a terminal."""
    env = without_settings() | environment
    if stdin:
        ended = subprocess.run(
            command, cwd=folder, env=env, input=stdin, capture_output=True, text=True, timeout=60, check=False
        )
    else:
        ended = warm.run(command, cwd=folder, env=env)
    assert ended.returncode == code, ended.stdout + ended.stderr
    return ended


def machine(folder: Path, name: str) -> Path:
    (folder / name).mkdir()
    return folder / name


def mode(path: Path) -> int:
    return path.stat().st_mode & 0o777


@contextmanager
def server_in(folder: Path, port: int) -> Iterator[str]:
    """uvicorn, which has all it needs from `.env` there."""
    command = [PYTHON, "-m", "uvicorn", "--app-dir", str(ROOT), "--port", str(port), "server:app"]
    with running(Process("server", command, folder)) as process:
        process.wait_for(lambda line: True if "Uvicorn running on" in line else None)
        yield f"http://127.0.0.1:{port}"


@contextmanager
def gateway_in(folder: Path) -> Iterator[Process]:
    with running(Process("gateway", CLIENT, folder)) as process:
        process.wait_for_event("gateway.started")
        yield process


def rows(url: str, key: str) -> list[tuple[str, int]]:
    answer = httpx.get(f"{url}/series", headers={"Authorization": f"Bearer {key}"}, trust_env=False)
    return [(row["SeriesInstanceUID"], row["NumInstances"]) for row in answer.raise_for_status().json()["series"]]


def refused(port: int, ae_title: str) -> bool:
    ae = AE(ae_title)
    ae.add_requested_context(Verification)
    assoc = ae.associate("127.0.0.1", port)
    if assoc.is_established:
        assoc.release()
    return bool(assoc.is_rejected)


# --- two machines -----------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_two_folders_set_up_by_init_alone_take_an_image_to_a_row(tmp_path: Path) -> None:
    one, two, key_file = machine(tmp_path, "server"), machine(tmp_path, "gateway"), tmp_path / "key"
    http, dicom = str(free_port()), str(free_port())
    made = done(
        one, [*SERVER, "init", "--host", "127.0.0.1", "--port", http, "--gateway", "ct", "--save", str(key_file)]
    )
    key = key_file.read_text().strip()
    assert f"server:app --host 127.0.0.1 --port {http}" in made.stdout
    assert (key in made.stdout, mode(key_file), mode(one / ".env")) == (False, 0o600, 0o600)
    with server_in(one, int(http)) as url:
        flags = ["--scp-host", "127.0.0.1", "--scp-port", dicom, "--allowed-peers", "CT1", "--server-url", url]
        written = done(two, [*CLIENT, "init", *flags, "--api-key-file", "-"], stdin=f"{key}\n")
        assert "who may send" in written.stdout
        assert is_well(written.stdout), written.stdout
        with gateway_in(two) as process:
            assert refused(int(dicom), "STRANGER")
            send(int(dicom), [make_dataset("1"), make_dataset("2")], "CT1")
            process.wait_for_event("report.delivered", stored=2)
            assert rows(url, key) == [(SERIES, 2)]
        assert key not in "\n".join(process.lines)
    assert mode(two / ".env") == 0o600
    assert sorted(path.name for path in two.iterdir() if ".env" in path.name) == [".env"]
    assert key not in written.stdout + written.stderr


@pytest.mark.slow
def test_a_second_run_changes_nothing_and_makes_no_other_key(tmp_path: Path) -> None:
    command = [*SERVER, "init", "--gateway", "ct", "--port", str(free_port())]
    first = done(tmp_path, command)
    before = (tmp_path / ".env").read_bytes()
    again = done(tmp_path, command)
    assert (len(re.findall("sgk_", first.stdout)), "sgk_" in again.stdout) == (1, False)
    assert (tmp_path / ".env").read_bytes() == before
    assert len(json.loads(done(tmp_path, [*SERVER, "keys", "list", "--json"]).stdout)) == 1
    other = done(tmp_path, [*SERVER, "init", "--gateway", "mr", "--port", str(free_port())])
    assert len(re.findall("sgk_", other.stdout)) == 1


# --- without a terminal -----------------------------------------------------------------------------------------


def test_flags_that_lack_are_named_and_nothing_is_written(tmp_path: Path) -> None:
    nothing = done(tmp_path, [*CLIENT, "init"], code=2).stderr
    assert ("--scp-host" in nothing, "--server-url" in nothing, "--api-key-file" in nothing) == (True, True, False)
    flags = ["--scp-host", "10.0.0.7", "--server-url", "https://10.0.0.9:8000"]
    rest = done(tmp_path, [*CLIENT, "init", *flags], code=2).stderr
    assert ("--allowed-peers" in rest, "--api-key-file" in rest, "--scp-host" in rest) == (True, True, False)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["--scp-port", "x"], "--scp-port"),
        (["--pacs", "A@h"], "--pacs ORTHANC@10.0.0.5:4242"),
        (["--pacs", "A@tls://h:1"], "--pacs-ca"),
        (["--pacs", "A@h", "--scp-port", "x"], "--scp-port"),
        (["--allowed-peers", "A@b"], "--allowed-peers"),
        (["--ae-title", "SEVENTEEN_LETTERS"], "--ae-title STORESCP"),
        (["--id", "a/b"], "--id gateway-1"),
        (["--api-key-file", "/nonexistent/key"], "--api-key-file"),
        (["--api-key-file", "-"], "--api-key-file"),
    ],
)
def test_a_wrong_flag_is_named_with_an_example_and_nothing_is_written(
    tmp_path: Path, flags: list[str], said: str
) -> None:
    ended = done(tmp_path, [*CLIENT, "init", *GATEWAY_FLAGS, *flags], code=2)
    assert said in ended.stderr
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["--database-url", "mysql:///x"], "Error: --database-url='mysql:///x'"),
        (["--database-url", "-"], "--database-url: this is needed"),
        (["--host", "10.0.0"], "--host 10.0.0.9"),
        (["--host", "a/b"], "--host 10.0.0.9"),
    ],
)
def test_a_wrong_flag_of_the_server_is_named_and_nothing_is_written(
    tmp_path: Path, flags: list[str], said: str
) -> None:
    assert said in done(tmp_path, [*SERVER, "init", *flags], code=2).stderr
    assert list(tmp_path.iterdir()) == []


def test_a_key_is_named_as_the_variable_it_is_and_not_as_a_flag(tmp_path: Path) -> None:
    both = {"GATEWAY_API_KEY": KEY, "GATEWAY_API_KEY_FILE": "key"}
    ended = done(tmp_path, [*CLIENT, "init", *GATEWAY_FLAGS], code=2, **both)
    assert ("GATEWAY_API_KEY and" in ended.stderr, KEY in ended.stderr) == (True, False)


@pytest.mark.slow
def test_a_flag_before_init_is_written_too(tmp_path: Path) -> None:
    done(tmp_path, [*CLIENT, "--idle-policy", "fixed", "--scp-port", "0", "init", *GATEWAY_FLAGS], code=3)
    written = (tmp_path / ".env").read_text().splitlines()
    assert {"GATEWAY_IDLE_POLICY=fixed", "GATEWAY_SCP_PORT=0"} <= set(written)


def test_an_existing_file_is_merged_and_what_changes_is_shown_without_secrets(tmp_path: Path) -> None:
    path = tmp_path / ".env"
    path.write_text(
        f"# ours\nCOMPOSE_PROFILES=postgres\n\nGATEWAY_SCP_PORT=0 # any\nGATEWAY_API_KEY='{KEY}'\nGATEWAY_SCP_PROT=1\n"
    )
    before = path.read_bytes()
    wrong = done(tmp_path, [*CLIENT, "init", *GATEWAY_FLAGS], code=2)
    assert ("GATEWAY_SCP_PROT" in wrong.stderr, path.read_bytes() == before) == (True, True)
    path.write_bytes(before.replace(b"GATEWAY_SCP_PROT=1\n", b""))
    other = KEY[::-1]
    ended = done(
        tmp_path,
        [*CLIENT, "init", *GATEWAY_FLAGS, "--scp-port", "11112", "--api-key-file", "-"],
        stdin=other,
        code=3,
    )
    after = path.read_text()
    assert after.startswith("# ours\nCOMPOSE_PROFILES=postgres\n\nGATEWAY_SCP_PORT=11112  # any\n")
    assert (KEY in after, after.count(other), mode(path)) == (False, 1, 0o600)
    assert "GATEWAY_SCP_PORT: 0 → 11112" in ended.stdout
    assert re.search(r"GATEWAY_API_KEY: .* → ", ended.stdout)
    assert KEY not in ended.stdout + ended.stderr
    assert other not in ended.stdout + ended.stderr


@pytest.mark.slow
@pytest.mark.parametrize(
    ("content", "said"), [(b"GATEWAY_ID=\xff\n", "UTF-8"), (b"DATABASE_URL=mysql://x\nGATEWAY_ID=a/b\n", "For example")]
)
def test_a_file_that_is_wrong_already_is_named_without_a_traceback(tmp_path: Path, content: bytes, said: str) -> None:
    (tmp_path / ".env").write_bytes(content)
    for command in ([*CLIENT, "init", *GATEWAY_FLAGS], [*SERVER, "init"]):
        ended = done(tmp_path, command, code=2 if said == "For example" else 1)
        assert (said in ended.stderr, "Traceback" in ended.stderr) == (True, False)
    assert [path.name for path in tmp_path.iterdir()] == [".env"]
    assert (tmp_path / ".env").read_bytes() == content


@pytest.mark.slow
def test_a_key_that_was_saved_is_not_written_over(tmp_path: Path) -> None:
    (tmp_path / "key").write_text("sgk_of_another\n")
    ended = done(tmp_path, [*SERVER, "init", "--save", "key"], code=1)
    assert "No key was made" in ended.stderr
    assert (tmp_path / "key").read_text() == "sgk_of_another\n"


@pytest.mark.slow
def test_what_the_environment_overrules_is_said(tmp_path: Path) -> None:
    ended = done(tmp_path, [*CLIENT, "init", *GATEWAY_FLAGS, "--scp-port", "0"], code=3, GATEWAY_SCP_PORT="11112")
    assert "GATEWAY_SCP_PORT is also set in the environment" in ended.stderr


@pytest.mark.slow
def test_a_password_is_no_flag(tmp_path: Path) -> None:
    url = "postgresql+asyncpg://gateway:s3cret@127.0.0.1:9/series"
    ended = done(tmp_path, [*SERVER, "init", "--database-url", url], code=2)
    assert ("DATABASE_URL" in ended.stderr, "s3cret" in ended.stderr) == (True, False)
    failed = done(tmp_path, [*SERVER, "init"], code=1, DATABASE_URL=url)
    assert ("cannot be opened" in failed.stderr, "s3cret" in failed.stdout + failed.stderr) == (True, False)
    assert list(tmp_path.iterdir()) == []  # a database that cannot be opened is not written down


# --- on a terminal ----------------------------------------------------------------------------------------------


def answers(terminal: Terminal, typed: Mapping[str, str]) -> None:
    """Type each, once its question stands there."""
    for question, answer in typed.items():
        terminal.wait_for(question)
        terminal.written = ""
        terminal.type(f"{answer}\n")


def arguments_of(process: int) -> str:
    """Of the process and its children, as `ps` shows them."""
    children = Path(f"/proc/{process}/task/{process}/children").read_text().split()
    return "".join(Path(f"/proc/{each}/cmdline").read_text() for each in [str(process), *children])


def test_the_gateway_asks_judges_at_once_and_never_shows_the_key(tmp_path: Path) -> None:
    (tmp_path / ".env").write_text("# ours\n")
    with on_a_terminal([*CLIENT, "init"], tmp_path, width=250) as terminal:
        answers(
            terminal,
            {
                "PACS that can be asked": "nonsense",
                "not of the form[^~]*PACS that can be asked": "ARCHIVE@127.0.0.1:9",
                "Address of this machine": "0.0.0.0",  # noqa: S104 - never listened on
                "DICOM port": "99999",
                "65535[^~]*DICOM port": "11112",
                "AE title of": "",
                r"Who may send.*ARCHIVE@127\.0\.0\.1": "CT1,10.0.0.0/24",
                "URL of the server": "http://127.0.0.1:9",
                "Name of this gateway": "gateway-7",
            },
        )
        terminal.wait_for("Key from .*not shown")
        terminal.type(f"{KEY}\n")
        terminal.wait_for(r"Write this to \.env")
        assert KEY not in arguments_of(terminal.process.pid)
        terminal.type("\n")
        assert terminal.ended() == 3  # there is neither server nor PACS
        shown = plain(terminal.written)
    assert KEY not in shown
    assert '{"DicomModalities": {"GATEWAY": ["STORESCP", "127.0.0.1", 11112]}}' in shown
    assert (tmp_path / ".env").read_text().splitlines() == [
        "# ours",
        "GATEWAY_PACS=ARCHIVE@127.0.0.1:9",
        "GATEWAY_SCP_HOST=0.0.0.0",
        "GATEWAY_SCP_PORT=11112",
        "GATEWAY_AE_TITLE=STORESCP",
        "GATEWAY_ALLOWED_PEERS=CT1,10.0.0.0/24",
        "GATEWAY_SERVER_URL=http://127.0.0.1:9",
        "GATEWAY_ID=gateway-7",
        f"GATEWAY_API_KEY={KEY}",
    ]
    assert mode(tmp_path / ".env") == 0o600


@pytest.mark.parametrize("at", ["Address of this machine", "Key from ", r"Write this to \.env"])
def test_ctrl_c_leaves_everything_as_it_was(tmp_path: Path, at: str) -> None:
    (tmp_path / ".env").write_text("GATEWAY_SCP_PORT=0 # ours\n")
    with on_a_terminal([*CLIENT, "init", "--id", "g"], tmp_path) as terminal:
        while not re.search(at, plain(terminal.written)):
            terminal.wait_for(rf"{at}|: $")
            if not re.search(at, plain(terminal.written)):
                terminal.written = ""
                terminal.type("\n")
        terminal.type("\x03")
        terminal.type(
            "\n"
        )  # Python looks at a signal that came just before it waited for a line only at the line's end
        assert terminal.ended() == 1
    assert (tmp_path / ".env").read_text() == "GATEWAY_SCP_PORT=0 # ours\n"
    assert [path.name for path in tmp_path.iterdir()] == [".env"]


def test_ctrl_c_at_the_last_question_of_the_server_leaves_nothing(tmp_path: Path) -> None:
    with on_a_terminal([*SERVER, "init", "--host", "127.0.0.1", "--port", "8000"], tmp_path) as terminal:
        answers(terminal, {"Where series are stored": "", "Name of the gateway": ""})
        terminal.wait_for(r"Write this to \.env")
        terminal.type("\x03")
        terminal.type("\n")
        assert terminal.ended() == 1
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
@pytest.mark.peer("postgresql")
def test_the_server_asks_for_the_databases_password_and_shows_the_key_once(tmp_path: Path, postgresql_url: str) -> None:
    port = str(free_port())
    with on_a_terminal([*SERVER, "init", "--port", port], tmp_path, width=250) as terminal:
        answers(terminal, {"Where series are stored": postgresql_url})
        answers(
            terminal, {"Address of this machine": "http://x", r"10\.0\.0\.9[^~]*Address of this machine": "127.0.0.1"}
        )
        answers(terminal, {"Name of the gateway": "", r"Write this to \.env": "y"})
        assert terminal.ended() == 0
    (key,) = re.findall(r"sgk_\w+_[\w-]+", plain(terminal.written))
    assert (tmp_path / ".env").read_text().startswith("DATABASE_URL=")
    listed = json.loads(done(tmp_path, [*SERVER, "keys", "list", "--json"]).stdout)
    assert [(one["name"], one["scopes"]) for one in listed] == [("gateway-1", "series:read series:write")]
    assert listed[0]["id"] in key


@pytest.mark.slow
@pytest.mark.peer("postgresql")
def test_a_password_is_typed_without_echo_and_encoded(tmp_path: Path, postgresql_url: str) -> None:
    url = postgresql_url.replace("postgres:@", "postgres@")  # which lets everyone in
    flags = ["--database-url", url, "--host", "127.0.0.1", "--port", str(free_port()), "--gateway", "ct"]
    with on_a_terminal([*SERVER, "init", *flags], tmp_path, width=250) as terminal:
        terminal.wait_for("Password of postgres")
        terminal.type("s3c/r@t\n")
        terminal.wait_for(r"Write this to \.env")
        terminal.type("\n")
        assert terminal.ended() == 0
    assert "s3c" not in terminal.written
    assert (tmp_path / ".env").read_text() == f"DATABASE_URL='{url.replace('postgres@', 'postgres:s3c%2Fr%40t@')}'\n"
    again = done(tmp_path, [*SERVER, "init", *flags])  # the flag without the password is the same database
    assert "s3c%2Fr%40t@" in (tmp_path / ".env").read_text()
    assert "s3c" not in again.stdout + again.stderr


# --- the page that says so --------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.peer("orthanc")
@pytest.mark.peer("curl")
def test_the_first_day_goes_as_its_page_says(tmp_path: Path) -> None:
    one, two = machine(tmp_path, "server"), machine(tmp_path, "gateway")
    http, dicom, pacs_port = free_port(), free_port(), free_port()
    here = {"10.0.0.9:8000": f"127.0.0.1:{http}", "10.0.0.9 --port 8000": f"127.0.0.1 --port {http}"}
    here |= {"PACS@10.0.0.5:104": f"ORTHANC@127.0.0.1:{pacs_port}", "PACS@10.0.0.5": "ORTHANC@127.0.0.1"}
    here |= {"10.0.0.9": f"127.0.0.1 --port {http}", "10.0.0.7": f"127.0.0.1 --scp-port {dicom}", "$KEY": "KEY-OF-ME"}
    make, server_init, uvicorn, _, client_init, client, create, curl, *_ = [
        filled(command, **here) for command in commands(GUIDE)
    ]
    assert make == "make .venv/running"
    with ExitStack() as both:
        terminal = both.enter_context(on_a_terminal(shlex.split(server_init), one, width=250))
        answers(terminal, {"Where series are stored": "", "Name of the gateway": "", "Write this": ""})
        assert terminal.ended() == 0
        (key,) = re.findall(r"sgk_\w+_[\w-]+", plain(terminal.written))
        program = uvicorn.replace(".venv/bin/uvicorn", f"{PYTHON} -m uvicorn --app-dir {ROOT}")
        process = both.enter_context(running(Process("server", shlex.split(program), one)))
        process.wait_for(lambda line: True if "Uvicorn running on" in line else None)
        pacs = both.enter_context(orthanc(tmp_path, dicom, dicom_port=pacs_port))

        terminal = both.enter_context(on_a_terminal(shlex.split(client_init), two, width=250))
        typed = {"Name of this gateway": "", "Key from ": key, "Write this": ""}
        answers(terminal, {"AE title of": "", **typed})
        assert terminal.ended() == 0, plain(terminal.written)
        (modalities,) = re.findall(r'\{"DicomModalities": .*\}', plain(terminal.written))
        title, host, port = json.loads(modalities)["DicomModalities"]["GATEWAY"]
        assert host == "127.0.0.1"
        pacs.know("FIRSTDAY", title, port)
        gateway = both.enter_context(running(Process("gateway", shlex.split(client), two)))
        gateway.wait_for_event("gateway.started")

        study = {pacs.upload(Path(path)) for path in write(tmp_path, new_series(5))}
        pacs.send([*study], to="FIRSTDAY")
        gateway.wait_for_event("report.delivered")
        made = done(one, [*shlex.split(create), "--json"])
        mine = json.loads(made.stdout)["key"]
        listed = json.loads(done(one, ["sh", "-ec", curl.replace("KEY-OF-ME", mine)], no_proxy="*").stdout)
    assert [(row["Verdict"], row["NumInstances"]) for row in listed["series"]] == [("verified", 5)]
    assert os.listdir(two).count(".env") == 1


@pytest.mark.slow
def test_the_page_without_a_terminal_is_right_too(tmp_path: Path) -> None:
    http = free_port()
    server_init, client_init = [
        filled(command, **{"10.0.0.9:8000": f"127.0.0.1:{http}", "10.0.0.9": f"127.0.0.1 --port {http}"})
        .replace("10.0.0.7", "127.0.0.1")
        .replace("init --scp", "--scp-port 0 init --scp")
        for command in commands(GUIDE)
        if "< " in command
    ]
    done(tmp_path, ["sh", "-ec", server_init])
    with server_in(tmp_path, http):
        done(tmp_path, ["sh", "-ec", client_init])
    assert mode(tmp_path / "gateway-1.key") == 0o600
