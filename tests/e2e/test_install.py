"""`make`'s set-up: it can be seen to work, without noise, and says everything where it fails."""

import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from bench.rig.processes import ROOT, Process, running, without_settings
from tests.rig.terminals import on_a_terminal, plain

INSTALL = [sys.executable, "-S", "-m", "bench.install"]  # -S: nothing is installed yet
BACKEND = ROOT / "tests" / "rig" / "programs" / "slow_backend.py"


@pytest.fixture
def pip(tmp_path: Path) -> dict[str, Any]:
    """Settings with which pip asks nobody, and installs into a folder of its own."""
    own = {"HOME": str(tmp_path), "TMPDIR": str(tmp_path), "PIP_CONFIG_FILE": "/dev/null", "PIP_NO_INDEX": "1"}
    return own | {"PIP_TARGET": str(tmp_path / "target"), "PIP_NO_CACHE_DIR": "1"}


@pytest.fixture
def slow(tmp_path: Path) -> Path:
    """Requirements with a package that is built only once a file `go` stands beside them."""
    project = tmp_path / "slow"
    project.mkdir()
    build = '[build-system]\nrequires = []\nbuild-backend = "backend"\nbackend-path = ["."]\n'
    (project / "pyproject.toml").write_text(build + '[project]\nname = "slow"\nversion = "1.0"\n')
    shutil.copy(BACKEND, project / "backend.py")
    file = tmp_path / "requirements.txt"
    file.write_text(f"slow @ file://{project}\n")
    return file


@pytest.mark.slow
def test_on_a_terminal_one_line_moves_while_pip_works(tmp_path: Path, pip: dict[str, Any], slow: Path) -> None:
    with on_a_terminal([*INSTALL, str(slow)], ROOT, width=200, **pip) as terminal:
        terminal.wait_for(r"installing .*: [2-9]\d* s, \w+")
        terminal.wait_for(r"installing .*: [4-9]\d* s, \w+")
        (tmp_path / "go").touch()
        assert terminal.ended() == 0
    assert (tmp_path / "target" / "slow.py").is_file()
    *passing, last, nothing = re.split(r"\n|\x1b\[K", terminal.written.replace("\r", ""))
    assert all(
        line.startswith("installing ") for line in passing if line
    )  # each was replaced by the next, and the last by nothing
    assert re.fullmatch(rf"installed {slow}: 1 packages in \d+ s", plain(last))
    assert nothing == ""


def test_elsewhere_a_line_says_that_pip_works_and_one_that_it_is_done(
    tmp_path: Path, pip: dict[str, Any], slow: Path
) -> None:
    with running(Process("install", [*INSTALL, str(slow)], ROOT, **pip)) as process:
        process.wait_for(lambda line: line.startswith("installing ") or None)
        (tmp_path / "go").touch()
        assert process.popen.wait(100) == 0
    assert [line for line in process.lines if not line.startswith(("installing ", "installed "))] == []


def test_where_pip_fails_all_that_it_said_is_shown(tmp_path: Path, pip: dict[str, Any]) -> None:
    (tmp_path / "requirements.txt").write_text("no-such-package-as-this\n")
    done = subprocess.run(
        [*INSTALL, str(tmp_path / "requirements.txt")],
        cwd=ROOT,
        env=without_settings() | pip,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 1
    assert "No matching distribution found for no-such-package-as-this" in done.stderr
