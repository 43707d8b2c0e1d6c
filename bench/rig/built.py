"""Programs that are built where a compiler is, once, into the user's cache: our sender and floor in C, and dicom-rs."""

import hashlib
import os
import shutil
import subprocess
import tempfile
from pathlib import Path

CACHE = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "series-gateway"
COMPILER = shutil.which("cc") or shutil.which("gcc")
COMPILER_MISSING = "there is no C compiler (Debian: apt-get install gcc libc6-dev)"
CARGO = shutil.which("cargo") or shutil.which("cargo", path=str(Path.home() / ".cargo" / "bin"))
CARGO_MISSING = "dicom-rs is not built yet (make bench does, with cargo: https://rustup.rs)"
DICOM_RS = "0.10.1"
CARGO_TIMEOUT_S = 1800


class NotBuilt(Exception):
    """A program is not here and cannot be built. The text says what is missing."""


def compiled(name: str, compiler: str | None = COMPILER, cache: Path = CACHE) -> Path:
    """Compiles bench/rig/NAME.c if its source has changed since; returns the program. Raises NotBuilt."""
    source = Path(__file__).with_name(f"{name}.c")
    program = cache / f"{name}-{hashlib.sha256(source.read_bytes()).hexdigest()[:16]}"
    if program.exists():
        return program
    if compiler is None:
        raise NotBuilt(COMPILER_MISSING)
    cache.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=cache) as folder:
        made = Path(folder) / name
        _run([compiler, "-O2", "-pthread", "-o", str(made), str(source)], 120)
        made.replace(program)  # whoever else compiles it meanwhile makes the same
    return program


def dicom_rs(cargo: str | None = CARGO, cache: Path = CACHE) -> Path:
    """Builds dicom-rs' storescp and storescu, minutes long the first time; returns their folder. Raises NotBuilt."""
    root = cache / f"dicom-rs-{DICOM_RS}"
    if (root / "bin" / "dicom-storescu").exists() and (root / "bin" / "dicom-storescp").exists():
        return root / "bin"
    if cargo is None:
        raise NotBuilt(CARGO_MISSING)
    names = ["dicom-storescp", "dicom-storescu"]
    _run([cargo, "install", "--quiet", "--locked", "--root", str(root), "--version", DICOM_RS, *names], CARGO_TIMEOUT_S)
    return root / "bin"


def _run(command: list[str], timeout_s: float) -> None:
    """Runs a builder. Raises NotBuilt with the last line that it said."""
    try:
        subprocess.run(command, check=True, capture_output=True, text=True, timeout=timeout_s)
    except (subprocess.SubprocessError, OSError) as error:
        said = str(getattr(error, "stderr", None) or error).strip().splitlines()
        raise NotBuilt(f"{Path(command[-1]).name}: {said[-1] if said else error}") from error
