"""The units of deploy/systemd, really started by systemd, once the lines of the guides have installed them.

The machine is a container of Debian's packages (bench/rig/images.py); of the units no line is left out or changed.
"""

import json
import re
from contextlib import suppress
from pathlib import Path

import pytest
from pydicom.dataset import Dataset
from pynetdicom import AE

from bench.rig.compose import CommandFailed, Machine, machine, until
from bench.rig.senders import synthetic_series
from tests.rig.papers import JOBS, OPERATIONS, lines

pytestmark = [pytest.mark.slow, pytest.mark.peer("docker"), pytest.mark.timeout(1800)]
UNITS = ("series-server", "series-gateway", "series-on-complete")
PYTHON = "/opt/series-gateway/.venv/bin/python"
SITE = "sed -i -e 's/^GATEWAY_ALLOWED_PEERS=.*/GATEWAY_ALLOWED_PEERS=CT1/' -e '/^GATEWAY_PACS=/d' "
SITE += "/etc/series-gateway/gateway.env"
READ = f"""{PYTHON} -c '
import pathlib, urllib.request
key = pathlib.Path("/root/reader").read_text().strip()
asked = urllib.request.Request("http://127.0.0.1:8000/series", headers={{"Authorization": "Bearer " + key}})
print(urllib.request.urlopen(asked, timeout=10).read().decode())' || true
"""


def install(box: Machine) -> None:
    """The guide's block as it stands, and what SITE asks for, before the units start; then a key to read with."""
    (block,) = re.findall(r"^cp -r \. /opt(?:.*\n)*?(?=```)", OPERATIONS, re.MULTILINE)
    before, begin, after = block.partition("systemctl daemon-reload")
    box(f"cd /root/series-gateway\n{before}{SITE}\n{begin}{after}")
    made = ["keys", "create", "reader", "--scope", "series:read", "--save", "/var/lib/series-server/reader"]
    box(
        "export DATABASE_URL=sqlite+aiosqlite:////var/lib/series-server/series.db\n"
        f"runuser -u series-server -- {PYTHON} /opt/series-gateway/server.py {' '.join(made)}\n"
        "mv /var/lib/series-server/reader /root/reader"
    )
    install_on_complete(box)


def install_on_complete(box: Machine) -> None:
    """With a key and a script of the site; it tells what comes once it follows the changes."""
    (block,) = re.findall(r"^install -D .*on-complete\.env\n(?:.*\n)*?(?=```)", JOBS, re.MULTILINE)
    box(
        "install -m 600 /root/reader /etc/series-gateway/reader-key\n"
        """printf '#!/bin/sh\\necho "$1 $NUM_INSTANCES" >> ran\\n' > /etc/series-gateway/run\n"""
        f"chmod 755 /etc/series-gateway/run\ncd /root/series-gateway\n{block}"
    )
    until(lambda: "changes.followed" in box("journalctl --unit series-on-complete --no-pager") or None)


def ran(box: Machine, *sent: list[Dataset]) -> None:
    """Until the script has run for each of these series, with all of its images."""
    wanted = {f"{series[0].SeriesInstanceUID} {len(series)}" for series in sent}
    until(lambda: wanted <= {*box("cat /var/lib/series-on-complete/ran || true").splitlines()} or None)


def shown(box: Machine, unit: str, name: str) -> str:
    return box(f"systemctl show --property {name} --value {unit}").strip()


def run_command(box: Machine, command: str) -> str:
    """An operator's command, by the guide's line."""
    (line,) = lines(OPERATIONS, "systemd-run ")
    return box(f"{line.removesuffix('status')}{command}")


def send(box: Machine, series: list[Dataset]) -> None:
    """As the modality that the gateway lets in; every image has to be kept."""
    until(lambda: listening(box))
    ae = AE("CT1")
    ae.add_requested_context(series[0].SOPClassUID)
    assoc = ae.associate("127.0.0.1", box.port, ae_title="STORESCP")
    assert {assoc.send_c_store(ds).Status for ds in series} == {0}
    assoc.release()


def listening(box: Machine) -> bool | None:
    """Whether the gateway takes images; systemd calls a process started that has only begun."""
    with suppress(CommandFailed):
        run_command(box, "status")
        return True
    return None


def stored(box: Machine, *sent: list[Dataset]) -> None:
    """Until the rows are these series, each whole."""
    wanted = {str(series[0].SeriesInstanceUID): len(series) for series in sent}

    def look() -> bool | None:
        said = box(READ)
        rows = json.loads(said)["series"] if said.startswith("{") else []
        return {row["SeriesInstanceUID"]: row["NumInstances"] for row in rows} == wanted or None

    until(look)


def check_rights(box: Machine, unit: str) -> None:
    """As the unit says: its user, no capability, none to gain, system calls filtered, writing to its state only."""
    pid = shown(box, unit, "MainPID")
    status = dict(re.findall(r"^(\w+):\s+(\w+)", box(f"cat /proc/{pid}/status"), re.MULTILINE))
    assert status["Uid"] == box(f"id -u {unit}").strip() != "0"
    assert {int(status[name], 16) for name in ("CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb")} == {0}
    assert (status["NoNewPrivs"], status["Seccomp"]) == ("1", "2")
    inside = f"nsenter --target {pid} --mount --"
    for folder in ("/etc", "/opt/series-gateway", "/var/lib", "/usr"):
        assert "Read-only" in box(f"{inside} touch {folder}/x 2>&1 || true")
    box(f"{inside} touch /var/lib/{unit}/x && rm /var/lib/{unit}/x")
    assert box(f"stat -c '%a %U' /var/lib/{unit}").split() == ["700", unit]
    assert set(box(f"stat -c %a /var/lib/{unit}/*.db").split()) == {"600"}
    assert box(f"{inside} ls /home /root | wc -w").strip() in ("0", "2")  # the folders' names, and nothing in them


def test_the_units_run_hardened_lose_nothing_stop_in_time_and_rotate(tmp_path: Path) -> None:
    with machine(tmp_path) as box:
        install(box)
        first, second, third = (synthetic_series(5) for _ in range(3))
        send(box, first)
        stored(box, first)
        ran(box, first)
        for unit in UNITS:
            check_rights(box, unit)
        assert " 0 failed" in run_command(box, "check")

        # kill -9, with a report that waits
        box("systemctl stop series-server")
        box("systemctl kill --signal=KILL series-on-complete")
        send(box, second)
        box("systemctl kill --signal=KILL series-gateway")
        until(lambda: shown(box, "series-gateway", "NRestarts") == "1" or None)
        box("systemctl start series-server")
        stored(box, first, second)
        box("systemctl kill --signal=KILL series-server")
        until(lambda: shown(box, "series-server", "NRestarts") == "1" or None)
        stored(box, first, second)
        ran(box, first, second)

        # stops in time, and not by SIGKILL
        box(f"systemctl stop {' '.join(UNITS)}")
        assert {shown(box, unit, "Result") for unit in UNITS} == {"success"}

        box.restart()
        assert {shown(box, unit, "ActiveState") for unit in UNITS} == {"active"}
        send(box, third)
        stored(box, first, second, third)
        ran(box, first, second, third)

        check_rotation(box)


def check_rotation(box: Machine) -> None:
    """The audit log is cut, kept, compressed the time after, and still written by the server."""
    log = "/var/lib/series-server/audit.log"
    rotate = "logrotate --force /etc/logrotate.d/series-server"
    box(f"{READ}{rotate}")
    whole = box(f"cat {log}.1")
    assert ' reader"' in whole
    box(READ)
    assert ' reader"' in box(f"cat {log}")
    box(rotate)
    assert box(f"zcat {log}.2.gz") == whole
    assert set(box(f"stat -c '%a %U' {log}*").splitlines()) == {"600 series-server"}
    assert "logrotate.timer" in box("systemctl list-timers --all --no-pager")
