"""Writes Orthanc's configuration from the variables of its container, and becomes Orthanc."""

import json
import os
import re
from pathlib import Path


def main() -> None:
    """ORTHANC__DICOM_AET is DicomAet; what ORTHANC_JSON holds comes last."""
    settings: dict[str, object] = {
        "StorageDirectory": "/var/lib/orthanc/db",
        "IndexDirectory": "/var/lib/orthanc/db",
        "Plugins": ["/usr/share/orthanc/plugins"],
    }
    for name, value in os.environ.items():
        if name.startswith("ORTHANC__"):
            settings[camel(name.removeprefix("ORTHANC__"))] = value_of(value)
    settings |= json.loads(os.environ.get("ORTHANC_JSON", "{}"))
    path = Path("/tmp/orthanc.json")  # noqa: S108 - of a container
    path.write_text(json.dumps(settings))
    os.execv("/usr/sbin/Orthanc", ["Orthanc", str(path)])  # noqa: S606


def camel(name: str) -> str:
    return re.sub(r"_?([A-Z])([A-Z]*)", lambda found: found[1] + found[2].lower(), name)


def value_of(text: str) -> object:
    try:
        return json.loads(text)
    except ValueError:
        return text


if __name__ == "__main__":
    main()
