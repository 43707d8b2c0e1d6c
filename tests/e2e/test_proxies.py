"""Real proxies in front of the real server: what goes through them while it restarts arrives, once; its page acts."""

from pathlib import Path
from urllib.parse import urlsplit

import httpx
import pytest

from api.acting import TOKEN
from bench.proxies import PROXIES, try_proxy
from bench.rig.peers import free_port, wait_for_port
from bench.rig.processes import running
from tests.rig.factories import SERIES, make_report
from tests.rig.serving import serving

EACH = [pytest.param(name, marks=pytest.mark.peer(name.lower())) for name in PROXIES]


@pytest.mark.slow
@pytest.mark.parametrize("proxy", EACH)
def test_reports_through_a_proxy_survive_restarts_of_the_server(tmp_path: Path, proxy: str) -> None:
    outcome = try_proxy(tmp_path, PROXIES[proxy], 300, 2)
    assert (outcome.dead, outcome.lost, outcome.doubled) == (0, 0, 0)
    assert outcome.answered  # the restarts were met


@pytest.mark.slow
@pytest.mark.parametrize("proxy", EACH)
def test_the_page_acts_through_a_proxy_and_no_other_page_does(tmp_path: Path, proxy: str) -> None:
    port = free_port()
    url = f"http://127.0.0.1:{port}"
    declared = {"Declared": "incomplete", "Because": "the last phase is missing"}
    with serving(tmp_path) as server, running(PROXIES[proxy](tmp_path, port, urlsplit(server.url).port or 0)):
        wait_for_port(port)
        with httpx.Client(base_url=url, trust_env=False, timeout=60) as browser:
            bearer = {"Authorization": f"Bearer {server.new_key('admin')}"}
            assert browser.post("/series", json=make_report("1").model_dump(mode="json"), headers=bearer).is_success
            token = browser.post("/session", headers=bearer).json()["Token"]
            for origin, status in ((server.url, 403), ("http://evil.example", 403), (url, 200)):
                sent = {"Origin": origin, TOKEN: token}
                answer = browser.post(f"/series/{SERIES}/declaration", json=declared, headers=sent)
                assert answer.status_code == status, answer.text
