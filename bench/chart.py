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
    """Tables of rates and ratios, one plot; the text around them stands in docs/benchmarks.md between the marks."""
    _insert(
        ROOT / "docs" / "benchmarks.md", [_rates(results), _costs(results), _extremes(results), _telemetry(results)]
    )
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


def _names(results: dict[str, Any]) -> list[str]:
    return list(dict.fromkeys(cell["receiver"] for cell in results["cells"]))


def _groups(results: dict[str, Any]) -> dict[tuple[str, str, int], dict[str, dict[str, Any]]]:
    groups: dict[tuple[str, str, int], dict[str, dict[str, Any]]] = {}
    for cell in results["cells"]:
        groups.setdefault((cell["sender"], cell["size"], cell["associations"]), {})[cell["receiver"]] = cell
    return groups


def _rates(results: dict[str, Any]) -> str:
    names = _names(results)
    lines = [f"| sender, size, associations | {' | '.join(names)} |", "|---" * (len(names) + 1) + "|"]
    for (sender, size, associations), cells in _groups(results).items():
        mine = cells["ours"]["instances_per_s"]
        shown = [f"**{mine:.0f}/s** ({cells['ours']['mb_per_s']:.0f} MB/s)"]
        shown += [
            f"{cells[name]['instances_per_s']:.0f}/s ({mine / cells[name]['instances_per_s']:.1f})"
            for name in names[1:]
        ]
        lines.append(f"| {sender}, {size}, {associations} | {' | '.join(shown)} |")
    return "\n".join(lines)


def _costs(results: dict[str, Any]) -> str:
    names = _names(results)
    lines = [f"| CPU seconds per 1000 instances | {' | '.join(names)} |", "|---" * (len(names) + 1) + "|"]
    for (sender, size, associations), cells in _groups(results).items():
        shown = [f"{cells[name]['cpu_s_per_1000']:.2f}" for name in names]
        lines.append(f"| {sender}, {size}, {associations} | {' | '.join(shown)} |")
    last = list(_groups(results).values())[-1]
    lines.append("| peak RSS at the end, MiB | " + " | ".join(f"{last[n]['peak_rss_mib']:.0f}" for n in names) + " |")
    return "\n".join(lines)


def _extremes(results: dict[str, Any]) -> str:
    lines = ["| one instance of 1 GiB | seconds | raised peak RSS by |", "|---|---|---|"]
    for name, big in results["one_gibibyte"].items():
        lines.append(f"| {name} | {big['seconds']:.1f} | {big['raised_rss_mib']:.0f} MiB |")
    lines += ["", "| idle associations | | CPU, percent of one core |", "|---|---|---|"]
    for name, (associations, percent) in results["idle"].items():
        lines.append(f"| {name} | {associations} | {percent:.1f} |")
    lines += ["", f"{results['cores']} cores, shared by senders and receivers."]
    return "\n".join(lines)


def _telemetry(results: dict[str, Any]) -> str:
    lines = ["| telemetry | instances/s | to one that measures nothing | CPU seconds per 1000 instances |"]
    lines.append("|---|---|---|---|")
    for name, figures in results.get("telemetry", {}).items():
        rate, ratio, cpu_s = (figures[column] for column in ("instances_per_s", "ratio", "cpu_s_per_1000"))
        lines.append(f"| {name} | {rate:.0f} | {ratio:.3f} | {cpu_s:.3f} |")
    return "\n".join(lines)


def _plot(results: dict[str, Any], path: Path) -> None:
    mpl.rcParams["svg.hashsalt"] = "series-gateway"
    groups, names = _groups(results), _names(results)
    figure, axes = plt.subplots(figsize=(11, 5.5), layout="constrained")
    width = 0.8 / len(names)
    for n, name in enumerate(names):
        rates = [cells[name]["instances_per_s"] for cells in groups.values()]
        axes.bar([place + n * width for place in range(len(groups))], rates, width, label=name)
    axes.set_yscale("log")
    axes.set_ylabel("instances a second (log scale)")
    labels = [f"{sender.replace(' ', chr(10))}\n{size}\n{associations} assoc." for sender, size, associations in groups]
    axes.set_xticks([place + 0.4 - width / 2 for place in range(len(groups))], labels, fontsize=8)
    axes.grid(axis="y", alpha=0.3)
    axes.legend(ncols=3, fontsize=8)
    figure.savefig(path, metadata={"Date": None})
    plt.close(figure)


if __name__ == "__main__":
    write_document(json.loads((ROOT / "bench" / "results.json").read_text()))
    sys.exit(0)
