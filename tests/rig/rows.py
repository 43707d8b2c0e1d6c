"""What processes tell over HTTP: rows and metrics."""

from typing import Any

import httpx
from prometheus_client.parser import text_string_to_metric_families

from bench.rig.processes import Process


def record(url: str, series: str) -> dict[str, Any]:
    """Returns the server's row of a series."""
    answer: dict[str, Any] = httpx.get(f"{url}/series/{series}", trust_env=False).raise_for_status().json()
    return answer


def wait_for_counts(process: Process, url: str, counts: dict[str, int]) -> None:
    """Wait until each series was delivered and the server counts so many."""
    while any(
        httpx.get(f"{url}/series/{uid}", trust_env=False).json().get("NumInstances") != n for uid, n in counts.items()
    ):
        process.wait_for_event("report.delivered")


Samples = dict[tuple[str, ...], float]


def scrape(url: str) -> Samples:
    """Samples by name and label values."""
    text = httpx.get(f"{url}/metrics", trust_env=False).raise_for_status().text
    return {
        (sample.name, *sample.labels.values()): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }
