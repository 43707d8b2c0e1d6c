"""Real proxies in front of the real server: what goes through them while it restarts arrives, once."""

from pathlib import Path

import pytest

from bench.proxies import PROXIES, try_proxy


@pytest.mark.slow
@pytest.mark.parametrize("proxy", [pytest.param(name, marks=pytest.mark.peer(name.lower())) for name in PROXIES])
def test_reports_through_a_proxy_survive_restarts_of_the_server(tmp_path: Path, proxy: str) -> None:
    outcome = try_proxy(tmp_path, PROXIES[proxy], 300, 2)
    assert (outcome.dead, outcome.lost, outcome.doubled) == (0, 0, 0)
    assert outcome.answered  # the restarts were met
