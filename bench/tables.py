"""The tables of docs/benchmarks.md, from what bench/results.json holds."""

from typing import Any


def table(part: dict[str, Any]) -> str:
    """A part's rows by receiver: rate, CPU time an image, and how many times as fast ours is."""
    columns = names(part["rows"])
    lines = [f"| sender, size, associations | {' | '.join(columns)} |", "|---" * (len(columns) + 1) + "|"]
    for row in part["rows"]:
        shown = [_cell(name, row["cells"].get(name), row["window"]) for name in columns]
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
    ratio = f" ({_short(cell['ratio'])})" if cell["ratio"] and name != "ours" else ""
    return f"{rate} {cell['cpu_us']:.0f} µs{ratio}"


def _short(ratio: float) -> str:
    """Two digits that count, but for those above 100."""
    return f"{ratio:.0f}" if ratio >= 9.95 else f"{ratio:.1f}" if ratio >= 0.95 else f"{ratio:.2f}"


def names(rows: list[dict[str, Any]]) -> list[str]:
    """The receivers, in their order."""
    return list(dict.fromkeys(name for row in rows for name in row["cells"]))


def extremes(results: dict[str, Any]) -> str:
    """Memory, with one instance of 1 GiB, and idle associations."""
    lines = ["| | peak RSS, MiB | one instance of 1 GiB | raises it by |", "|---|---|---|---|"]
    for name, big in results["one_gibibyte"].items():
        there = "failed" not in big
        shown = f"{big['seconds']:.1f} s | {big['raised_rss_mib']:.0f} MiB" if there else f"failed: {big['failed']} | -"
        lines.append(f"| {name} | {big.get('peak_rss_mib', 0):.0f} | {shown} |")
    lines += ["", "| idle associations | | CPU, percent of one core |", "|---|---|---|"]
    for name, idle in results["idle"].items():
        shown = f"{idle['percent']:.1f}" if "percent" in idle else f"failed: {idle['failed']}"
        lines.append(f"| {name} | {idle['associations']} | {shown} |")
    lines += ["", f"{results['cores']} cores, shared by senders and receivers; rounds: {results['rounds']}."]
    return "\n".join(lines)


def telemetry(results: dict[str, Any]) -> str:
    """Makes the table of what measuring costs."""
    lines = ["| telemetry | images/s | to one that measures nothing | CPU an image |"]
    lines.append("|---|---|---|---|")
    for name, figures in results.get("telemetry", {}).items():
        rate, ratio, cpu_us = (figures[column] for column in ("images_per_s", "ratio", "cpu_us"))
        lines.append(f"| {name} | {rate:.0f} | {ratio:.3f} | {cpu_us:.0f} µs |")
    return "\n".join(lines)
