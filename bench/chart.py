"""docs/benchmarks.md and its plot, from bench/results.json. Run it alone to draw them again."""

import json
import sys
from pathlib import Path
from typing import Any

import matplotlib as mpl
from matplotlib import pyplot as plt

from bench.rig.processes import ROOT

Points = dict[str, tuple[float, float, float]]
"""For each policy its false completions per 1000 series, median and 99th percentile of latency."""


def write_document(results: dict[str, Any]) -> None:
    """Tables of rates, costs and ratios, one plot; the text around their marks stands in docs/benchmarks.md."""
    parts = [f"### {part['title']}\n\n{table(part)}" for part in results["parts"]]
    _insert(ROOT / "docs" / "benchmarks.md", [*parts, f"### Extremes\n\n{_extremes(results)}", _telemetry(results)])
    _plot(results, ROOT / "docs" / "benchmarks.svg")


def write_completion(tables: dict[str, list[list[str]]], plots: dict[str, Points]) -> None:
    """Tables (lines each) and one plot of docs/completion.md, for each set of runs."""
    _insert(ROOT / "docs" / "completion.md", _parts(tables))
    _plot_completion(plots, ROOT / "docs" / "completion.svg")


def write_studies(tables: dict[str, list[list[str]]]) -> None:
    """Tables (lines each) of docs/completion.md about studies, for each set of runs."""
    _insert(ROOT / "docs" / "completion.md", _parts(tables), "figures of studies")


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


def _insert(path: Path, figures: list[str], what: str = "figures") -> None:
    """Put the figures between a document's marks."""
    first, last = f"<!-- {what} -->", f"<!-- end of {what} -->"
    before, rest = path.read_text().split(first)
    _, after = rest.split(last)
    text = "\n\n".join(figures)
    path.write_text(f"{before}{first}\n\n{text}\n\n{last}{after}")


def table(part: dict[str, Any]) -> str:
    """A part's rows by receiver: rate, CPU time an image, and how many times as fast ours is."""
    names = _names(part["rows"])
    lines = [f"| sender, size, associations | {' | '.join(names)} |", "|---" * (len(names) + 1) + "|"]
    for row in part["rows"]:
        shown = [_cell(name, row["cells"].get(name), row["window"]) for name in names]
        lines.append(f"| {row['name']} | {' | '.join(shown)} |")
    lines += ["", "† answered no window: one request at a time"] if any("†" in line for line in lines) else []
    return "\n".join(lines)


def _cell(name: str, cell: dict[str, Any] | None, window: int) -> str:
    if cell is None:
        return "-"
    if cell["failed"]:
        return f"failed: {cell['failed']}".replace("|", "/")
    rate = f"{cell['images_per_s']:.0f}/s" + ("†" if cell["window"] < window else "")
    rate = f"**{rate}**" if name == "ours" else rate
    ratio = f" ({cell['ratio']:.2g})" if cell["ratio"] and name != "ours" else ""
    return f"{rate} {cell['cpu_us']:.0f} µs{ratio}"


def _names(rows: list[dict[str, Any]]) -> list[str]:
    return list(dict.fromkeys(name for row in rows for name in row["cells"]))


def _extremes(results: dict[str, Any]) -> str:
    lines = ["| | peak RSS, MiB | one instance of 1 GiB | raises it by |", "|---|---|---|---|"]
    for name, big in results["one_gibibyte"].items():
        failed = f"failed: {big['failed']} | -" if "failed" in big else None
        shown = failed or f"{big['seconds']:.1f} s | {big['raised_rss_mib']:.0f} MiB"
        lines.append(f"| {name} | {big['peak_rss_mib']:.0f} | {shown} |")
    lines += ["", "| idle associations | | CPU, percent of one core |", "|---|---|---|"]
    for name, (associations, percent) in results["idle"].items():
        lines.append(f"| {name} | {associations} | {percent:.1f} |")
    lines += ["", f"{results['cores']} cores, shared by senders and receivers; {results['rounds']} rounds."]
    return "\n".join(lines)


def _telemetry(results: dict[str, Any]) -> str:
    lines = ["| telemetry | images/s | to one that measures nothing | CPU an image |"]
    lines.append("|---|---|---|---|")
    for name, figures in results.get("telemetry", {}).items():
        rate, ratio, cpu_us = (figures[column] for column in ("images_per_s", "ratio", "cpu_us"))
        lines.append(f"| {name} | {rate:.0f} | {ratio:.3f} | {cpu_us:.0f} µs |")
    return "\n".join(lines)


def _plot(results: dict[str, Any], path: Path) -> None:
    """A line for each row, a mark for each receiver."""
    mpl.rcParams["svg.hashsalt"] = "series-gateway"
    rows = [row for part in results["parts"] for row in part["rows"]]
    figure, axes = plt.subplots(figsize=(11, 2 + 0.3 * len(rows)), layout="constrained")
    for name, marker in zip(_names(rows), "*s_o<Ddv^x", strict=False):
        there = [(row["cells"][name]["images_per_s"], -n) for n, row in enumerate(rows) if name in row["cells"]]
        rates, places = zip(*((rate, place) for rate, place in there if rate), strict=True)
        axes.plot(rates, places, marker, ms=10 if name == "ours" else 6, alpha=0.8, label=name)
    axes.set_xscale("log")
    axes.set_xlabel("images a second (log scale)")
    axes.set_yticks([-n for n in range(len(rows))], [row["name"] for row in rows], fontsize=8)
    axes.grid(alpha=0.3)
    figure.legend(ncols=5, fontsize=8, loc="outside upper center")
    figure.savefig(path, metadata={"Date": None})
    plt.close(figure)


if __name__ == "__main__":
    write_document(json.loads((ROOT / "bench" / "results.json").read_text()))
    sys.exit(0)
