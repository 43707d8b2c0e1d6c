"""`python -m bench.install FILE`: pip, with one line that says how far it is; all that it said only where it fails.

It makes the environment that the rest of bench runs in: nothing but the standard library is there yet.
"""

import sys
import time
from pathlib import Path

from bench.rig.processes import Process

LOOK_S = 0.2
AGAIN_S = {
    True: 1.0,
    False: 10.0,
}  # between two lines: on a terminal, where each replaces the one before, and elsewhere
WIDTH = 60  # of what pip is at, in characters
PIP = ["-m", "pip", "install", "--no-input", "--disable-pip-version-check", "--progress-bar", "off", "-r"]


def main() -> int:
    """Install what the file lists; pip's exit code."""
    (file,) = sys.argv[1:]
    began = time.monotonic()
    pip = Process("pip", [sys.executable, *PIP, file], Path.cwd())
    _follow(pip, file, began)
    if code := pip.stop():
        print("\n".join(pip.lines), file=sys.stderr)
        return code
    found = [line for line in pip.lines if line.startswith("Successfully installed ")]
    packages = len(found[0].split()) - 2 if found else 0
    print(f"installed {file}: {packages} packages in {time.monotonic() - began:.0f} s")
    return 0


def _follow(pip: Process, file: str, began: float) -> None:
    """Say what pip is at until it ends."""
    on_terminal, shown_at = sys.stdout.isatty(), -1e9
    while pip.popen.poll() is None:
        if time.monotonic() >= shown_at + AGAIN_S[on_terminal]:
            shown_at = time.monotonic()
            doing = pip.lines[-1].strip()[:WIDTH] if pip.lines else "starts"
            text = f"installing {file}: {shown_at - began:.0f} s, {doing}"
            print(f"\r\x1b[K{text}" if on_terminal else text, end="" if on_terminal else "\n", flush=True)
        time.sleep(LOOK_S)
    print("\r\x1b[K" if on_terminal else "", end="", flush=True)


if __name__ == "__main__":
    sys.exit(main())
