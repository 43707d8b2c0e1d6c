"""A build backend (PEP 517) of a package that is built only once a file `go` stands beside its project."""

import time
import zipfile
from pathlib import Path
from typing import Any

GO = Path(__file__).parents[1] / "go"


def build_wheel(folder: str, config_settings: Any = None, metadata_directory: Any = None) -> str:
    """Builds the package (PEP 517)."""
    while not GO.exists():
        time.sleep(0.05)
    name = "slow-1.0-py3-none-any.whl"
    with zipfile.ZipFile(Path(folder, name), "w") as wheel:
        wheel.writestr("slow-1.0.dist-info/METADATA", "Metadata-Version: 2.1\nName: slow\nVersion: 1.0\n")
        wheel.writestr("slow-1.0.dist-info/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        wheel.writestr("slow-1.0.dist-info/RECORD", "")
        wheel.writestr("slow.py", "")
    return name
