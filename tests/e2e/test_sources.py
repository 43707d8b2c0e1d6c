"""Who sent, and when last: as the guide asks a real server and a real gateway."""

import json
import time
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest

from bench.rig.processes import gateway, server
from tests.rig.papers import JOBS, filled, line, shell
from tests.rig.rows import wait_for_counts
from tests.rig.sending import new_series, send

KEY = '-H "Authorization: Bearer $KEY" '
CURL = line(JOBS, f"curl {KEY}http://127.0.0.1:8000/sources").replace(KEY, "")
AT_SERVER, AT_GATEWAY = (
    filled(line(JOBS, f"python {door}.py sources").partition("#")[0].strip()) for door in ("server", "client")
)


@pytest.mark.slow
@pytest.mark.peer("curl")
def test_the_guides_commands_say_who_sent_and_when(tmp_path: Path) -> None:
    first, second = new_series(3), new_series(2)
    with server(tmp_path) as (_, url), gateway(tmp_path, url, idle_timeout_s=0.5) as (process, port):
        began = time.time()
        send(port, first)
        wait_for_counts(process, url, {first[0].SeriesInstanceUID: 3})
        while not (one := asked(url))["Learnt"]:
            time.sleep(0.1)  # for the next heartbeat
        assert (one["Source"], one["MissedHours"], one["Unusual"]) == ("SCU CT", 0, False)
        assert [(day["Images"], day["Series"]) for day in one["Days"]] == [(3, 1)]
        assert one["Verdicts"] == [{"Verdict": "idle", "Series": 1, "Contradicted": 0}]
        assert one["Learnt"][0]["LearntFrom"] == 1
        assert began - 1 <= datetime.fromisoformat(one["LastReceivedAt"]).timestamp() <= time.time()
        assert json.loads(shell(f"{AT_SERVER} --json", tmp_path, SERIES_URL=url))[0]["Days"] == one["Days"]
        assert "SCU CT" in shell(AT_SERVER, tmp_path, SERIES_URL=url)
        assert shell(f"{AT_SERVER} --unusual", tmp_path, SERIES_URL=url) == "none\n"
    (row,) = of_gateway(tmp_path)
    assert (row["source"], row["series"], row["images"], row["open_images"]) == ("SCU CT", 1, 3, 0)
    assert row["wait_s"] == one["Learnt"][0]["WaitS"]
    assert 0 <= row["silent_for_s"] <= time.time() - began + 1
    with gateway(tmp_path, url, idle_timeout_s=600) as (_, port):
        send(port, second)
        (row,) = of_gateway(tmp_path)
        assert (row["series"], row["images"], row["open_images"]) == (1, 3, 2)
        assert "SCU CT" in shell(AT_GATEWAY, tmp_path)


def asked(url: str) -> dict[str, Any]:
    (one,) = json.loads(shell(CURL.replace("http://127.0.0.1:8000", url)))["sources"]
    return dict(one)


def of_gateway(folder: Path) -> list[dict[str, Any]]:
    return list(json.loads(shell(f"{AT_GATEWAY} --json", folder, GATEWAY_IDLE_TIMEOUT_S="0.5")))
