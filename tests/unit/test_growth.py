"""What `make soak` says of growth, and that docs/reliability.md says what was saved."""

import json
from pathlib import Path
from typing import Any

import pytest

from bench.growth import BY_DESIGN, Samples, document, growths, last_line, save, second_half, slope, standard_error
from bench.rig.processes import ROOT

SERIES = [float(n) for n in range(100, 2100, 100)]


def said(name: str, values: list[float]) -> str:
    (growth,) = growths({"series": SERIES, name: values})
    return growth.says


def test_the_slope_is_that_of_least_squares() -> None:
    assert slope([0, 1, 2, 3], [5, 7, 9, 11]) == 2
    assert slope([0, 1, 2], [0, 3, 0]) == 0
    assert slope([0, 1, 2], [1, 2, 4]) == pytest.approx(1.5)


@pytest.mark.parametrize("xs", [[1.0], [2.0, 2.0, 2.0]])
def test_one_place_has_no_slope(xs: list[float]) -> None:
    assert slope(xs, [float(n) for n in range(len(xs))]) == 0
    assert standard_error(xs, [float(n) for n in range(len(xs))]) == 0


def test_a_line_has_no_error_and_what_is_off_it_has_one() -> None:
    assert standard_error([0, 1, 2, 3], [5, 7, 9, 11]) == 0
    assert standard_error([0, 1, 2], [0, 3, 0]) == pytest.approx(3**0.5)


def test_only_the_second_half_counts() -> None:
    assert second_half([10, 20, 30, 40]) == slice(1, None)
    rises_at_first = [min(count, 1000.0) for count in SERIES]
    assert said("rows of x", rises_at_first) == "bounded"


@pytest.mark.parametrize(
    ("name", "per_series", "says"),
    [
        ("rows of x", 1.0, "grows"),
        ("rows of x", -1.0, "bounded"),
        ("rows of purged", 1.0, f"grows until: {BY_DESIGN['rows of purged']}"),
        ("rows of purged", 0.0, "bounded"),
        ("server time series", 0.02, "bounded"),
        ("server time series", 0.1, "grows"),
        ("server RSS, MiB", 0.003, "bounded"),
        ("server RSS, MiB", 0.03, "grows"),
    ],
)
def test_what_rises_grows_unless_it_is_little_and_what_ends_it_is_named(
    name: str, per_series: float, says: str
) -> None:
    assert said(name, [50 + count * per_series for count in SERIES]) == says


def test_teeth_of_a_saw_are_no_growth() -> None:
    assert said("rows of series", [500.0 + 50 * (n % 4) for n in range(len(SERIES))]) == "bounded"


def results(samples: Samples) -> dict[str, Any]:
    counts = ("images", "sources", "days", "sent", "posted", "restarts", "purges", "purged", "seed", "cores")
    return dict.fromkeys(counts, 1) | {
        "series": 2000, "lost": 2, "doubled": 3, "took_s": 60, "database": "SQLite", "samples": samples,
    }  # fmt: skip


def test_the_last_line_counts_what_grows_without_an_end() -> None:
    samples = {"series": SERIES, "rows of x": SERIES, "rows of purged": SERIES, "rows of y": [1.0] * len(SERIES)}
    assert last_line(results(samples)) == "soak: series=2000 lost=2 doubled=3 grows=1"


def test_the_document_has_a_row_for_each_measure_and_names_those_without_anything() -> None:
    samples = {"series": SERIES, "rows of x": SERIES, "rows of orders": [0.0] * len(SERIES)}
    _, table, empty, end = document(results(samples))
    assert "| rows of x | 1000 | 2000 | +1000 | grows |" in table.splitlines()
    assert "orders" in empty
    assert end == "`soak: series=2000 lost=2 doubled=3 grows=1`"


def test_what_is_saved_is_read_again(tmp_path: Path) -> None:
    whole = results({"series": SERIES, "rows of x": SERIES})
    save(whole, tmp_path / "soak.json")
    assert json.loads((tmp_path / "soak.json").read_text()) == whole


def test_the_committed_document_is_rendered_from_the_committed_results() -> None:
    saved = json.loads((ROOT / "bench" / "soak.json").read_text())
    text = (ROOT / "docs" / "reliability.md").read_text()
    for paragraph in document(saved):
        assert paragraph in text
