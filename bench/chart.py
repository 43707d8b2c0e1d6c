"""docs/benchmarks.md and its plot, from bench/results.json; those of `make soak`. Run it alone to draw them again."""

import json
import sys
from pathlib import Path
from typing import Any

import matplotlib as mpl
from matplotlib import pyplot as plt

from bench.growth import Samples, document
from bench.rig.processes import ROOT
from bench.tables import extremes, names, table, telemetry

SOAK = "a year in an hour"
SOAK_PANELS = {
    "memory, MiB": ("gateway RSS, MiB", "server RSS, MiB"),
    "files, KiB": ("journal, KiB", "journal WAL, KiB", "database, KiB", "database WAL, KiB", "audit log, KiB"),
    "rows of the server": tuple(f"rows of {name}" for name in ("series", "instances", "timeline", "changes", "purged")),
    "rows of the journal": ("journal rows of reports", "journal rows of learnt", "journal rows of sources"),
    "descriptors and threads": (
        "gateway descriptors", "gateway threads", "server descriptors", "server threads",
    ),
    "time series in /metrics": ("gateway time series", "server time series"),
}  # fmt: skip
Points = dict[str, tuple[float, float, float]]
"""For each policy its false completions per 1000 series, median and 99th percentile of latency."""


def write_document(results: dict[str, Any]) -> None:
    """Tables of rates, costs and ratios, one plot; the text around their marks stands in docs/benchmarks.md."""
    parts = [f"### {part['title']}\n\n{table(part)}" for part in results["parts"]]
    _insert(ROOT / "docs" / "benchmarks.md", [*parts, f"### Extremes\n\n{extremes(results)}", telemetry(results)])
    _plot(results, ROOT / "docs" / "benchmarks.svg")


def write_completion(tables: dict[str, list[list[str]]], plots: dict[str, Points]) -> None:
    """Tables (lines each) and one plot of docs/completion.md, for each set of runs."""
    _insert(ROOT / "docs" / "completion.md", _parts(tables))
    _plot_completion(plots, ROOT / "docs" / "completion.svg")


def write_studies(tables: dict[str, list[list[str]]]) -> None:
    """Tables (lines each) of docs/completion.md about studies, for each set of runs."""
    _insert(ROOT / "docs" / "completion.md", _parts(tables), "figures of studies")


def write_soak(results: dict[str, Any]) -> None:
    """Tables and one plot of docs/reliability.md about a year in an hour."""
    _insert(ROOT / "docs" / "reliability.md", document(results), SOAK)
    _plot_soak(results["samples"], ROOT / "docs" / "images" / "soak.svg")


def _parts(tables: dict[str, list[list[str]]]) -> list[str]:
    return [f"### {name}\n\n" + "\n\n".join("\n".join(lines) for lines in some) for name, some in tables.items()]


def _plot_completion(plots: dict[str, Points], path: Path) -> None:
    """Wrong against slow; a policy has its colour in every set of runs."""
    mpl.rcParams["svg.hashsalt"] = "series-gateway"
    labels = list(dict.fromkeys(label for points in plots.values() for label in points))
    figure, all_axes = plt.subplots(1, len(plots), figsize=(5 * len(plots), 5.5), layout="constrained")
    for axes, (name, points) in zip(all_axes, plots.items(), strict=True):
        for label, (false_per_1000, median_s, p99_s) in points.items():
            marker = "*" if "PACS" in label else "s" if "fixed" in label else "o"
            colour = mpl.colormaps["tab20"](labels.index(label))
            (mark,) = axes.plot(median_s, false_per_1000, marker, color=colour, ms=9, clip_on=False, label=label)
            axes.plot([median_s, p99_s], [false_per_1000] * 2, "-|", color=mark.get_color(), alpha=0.5)
        axes.set_xscale("log")
        axes.set_yscale("symlog", linthresh=1)
        axes.set_ylim(bottom=-0.2)
        axes.set_xlabel("added latency, s: median (dot) to p99 (bar)")
        axes.set_title(name)
        axes.grid(alpha=0.3)
    all_axes[0].set_ylabel("false completions per 1000 series")
    all_axes[0].legend(fontsize=8)
    figure.savefig(path, metadata={"Date": None})
    plt.close(figure)


def _plot_soak(samples: Samples, path: Path) -> None:
    """A panel for each kind of measure, over the number of series."""
    mpl.rcParams["svg.hashsalt"] = "series-gateway"
    figure, all_axes = plt.subplots(3, 2, figsize=(11, 9), layout="constrained", sharex=True)
    for axes, (title, measures) in zip(all_axes.flat, SOAK_PANELS.items(), strict=True):
        for name in measures:
            if name in samples:
                axes.plot(samples["series"], samples[name], label=name.removeprefix("rows of ").partition(", ")[0])
        axes.set_title(title, fontsize=10)
        axes.set_ylim(bottom=0)
        axes.grid(alpha=0.3)
        axes.legend(fontsize=7)
    for axes in all_axes[-1]:
        axes.set_xlabel("series so far")
    figure.savefig(path, metadata={"Date": None})
    plt.close(figure)


def _insert(path: Path, figures: list[str], what: str = "figures") -> None:
    """Put the figures between a document's marks."""
    first, last = f"<!-- {what} -->", f"<!-- end of {what} -->"
    before, rest = path.read_text().split(first)
    _, after = rest.split(last)
    text = "\n\n".join(figures)
    path.write_text(f"{before}{first}\n\n{text}\n\n{last}{after}")


def _plot(results: dict[str, Any], path: Path) -> None:
    """A line for each row, a mark for each receiver."""
    mpl.rcParams["svg.hashsalt"] = "series-gateway"
    rows = [row for part in results["parts"] for row in part["rows"]]
    figure, axes = plt.subplots(figsize=(11, 2 + 0.3 * len(rows)), layout="constrained")
    for name, marker in zip(names(rows), "*sP^o<DdvX", strict=False):
        cells = [(n, row["cells"][name]) for n, row in enumerate(rows) if name in row["cells"]]
        points = [(cell["images_per_s"], -n) for n, cell in cells if not cell["failed"]]
        axes.plot(
            [x for x, _ in points],
            [y for _, y in points],
            marker,
            ms=10 if name == "ours" else 6,
            alpha=0.8,
            label=name,
        )
    axes.set_xscale("log")
    axes.set_xlabel("images a second (log scale)")
    axes.set_yticks([-n for n in range(len(rows))], [row["name"] for row in rows], fontsize=8)
    axes.grid(alpha=0.3)
    figure.legend(ncols=5, fontsize=8, loc="outside upper center")
    figure.savefig(path, metadata={"Date": None})
    plt.close(figure)


if __name__ == "__main__":
    write_document(json.loads((ROOT / "bench" / "results.json").read_text()))
    write_soak(json.loads((ROOT / "bench" / "soak.json").read_text()))
    sys.exit(0)
