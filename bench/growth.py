"""How what a process keeps grows with the number of series: the arithmetic and the text of `make soak`."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ERRORS = 3.0  # standard errors of a slope: one of fewer is none
NOISE = 0.05  # of a measure's mean: growth over the second half that is none
LEAST = {"MiB": 4.0, "KiB": 256.0, "rows": 50.0, "time series": 30.0, "": 5.0}
"""By unit, growth over the second half that is none either. A route that first answers adds 20 time series at once."""
BY_DESIGN = {
    "rows of purged": "one for each series that `purge` deleted, until that comes again; `purge` counts in it",
    "rows of changes": "`purge`",
    "rows of instances": "`purge`",
    "rows of series": "`purge`",
    "rows of studies": "`purge`",
    "rows of timeline": "`purge`",
    "rows of completions": "5,000 rows; sources beyond that stand together",
    "rows of source_hours": "five weeks of hours, of each source",
    "rows of sources": "1,000 sources",
    "rows of study_completions": "5,000 rows; sources beyond that stand together",
    "rows of study_sources": "1,000 rows; sources beyond that stand together",
    "database, KiB": "`purge`, whose free pages are used again; tombstones stay",
    "database WAL, KiB": "its largest transaction; the space is used again, 64 MiB of it stay at most",
    "audit log, KiB": "logrotate",
    "gateway RSS, MiB": "what is remembered of closed series: images for 800 s, revisions of 100,000 (60 MiB)",
    "journal rows of learnt": "1,000 sources",
    "journal rows of sources": "1,000 sources",
    "journal rows of reports": "its history: 10,000 reports or seven days",
}
"""What grows until something else ends that: by measure, what does."""

Samples = dict[str, list[float]]
"""By measure, what it was at each look; `series` is how many there had been."""


@dataclass(frozen=True)
class Growth:
    """How one measure grew over the second half."""

    name: str
    at_half: float
    at_end: float
    per_1000: float
    says: str

    @property
    def is_unexplained(self) -> bool:
        """Tell whether it grows and nobody knows what ends it."""
        return self.says == "grows"


def slope(xs: Sequence[float], ys: Sequence[float]) -> float:
    """Return the slope of the line of least squares; 0 for fewer than two different `xs`."""
    mean_x, mean_y = sum(xs) / len(xs), sum(ys) / len(ys)
    spread = sum((x - mean_x) ** 2 for x in xs)
    return sum((x - mean_x) * (y - mean_y) for x, y in zip(xs, ys, strict=True)) / spread if spread else 0.0


def standard_error(xs: Sequence[float], ys: Sequence[float]) -> float:
    """Return that of the slope; 0 for fewer than three points."""
    mean_x, mean_y, rise = sum(xs) / len(xs), sum(ys) / len(ys), slope(xs, ys)
    spread = sum((x - mean_x) ** 2 for x in xs)
    off = sum((y - mean_y - rise * (x - mean_x)) ** 2 for x, y in zip(xs, ys, strict=True))
    return float((off / (len(xs) - 2) / spread) ** 0.5) if len(xs) > 2 and spread else 0.0


def second_half(series: Sequence[float]) -> slice:
    """Return the looks at and behind the middle of all series."""
    return slice(next(n for n, count in enumerate(series) if count >= series[-1] / 2), None)


def growths(samples: Samples) -> list[Growth]:
    """Judge each measure that was ever anything else than 0."""
    half = second_half(samples["series"])
    xs = samples["series"][half]
    return [_growth(name, xs, values[half]) for name, values in samples.items() if name != "series" and any(values)]


def _growth(name: str, xs: Sequence[float], ys: Sequence[float]) -> Growth:
    rise = slope(xs, ys)
    unit = next((unit for unit in ("rows", "time series") if unit in name), name.partition(", ")[2])
    is_rise = rise > ERRORS * standard_error(xs, ys)
    grew = is_rise and rise * (xs[-1] - xs[0]) > max(LEAST[unit], NOISE * sum(ys) / len(ys))
    says = "bounded" if not grew else f"grows until: {BY_DESIGN[name]}" if name in BY_DESIGN else "grows"
    return Growth(name, ys[0], ys[-1], 1000 * rise, says)


def document(results: dict[str, Any]) -> list[str]:
    """Return the paragraphs of docs/reliability.md: what ran, how it grew, how it ended."""
    lines = ["| measure | at the half | at the end | per 1,000 series | |", "|---|---|---|---|---|"]
    lines += [
        f"| {each.name} | {_short(each.at_half)} | {_short(each.at_end)} | {_short(each.per_1000, '+')} | {each.says} |"
        for each in growths(results["samples"])
    ]
    empty = sorted(name.removeprefix("rows of ") for name, values in results["samples"].items() if not any(values))
    never = [f"Never a row or byte in: {', '.join(empty)}."] if empty else []
    return [ran(results), "\n".join(lines), *never, f"`{last_line(results)}`"]


def ran(results: dict[str, Any]) -> str:
    """Say in one sentence what ran."""
    return (
        f"{results['series']} series of {results['images']} images from {results['sources']} sources in "
        f"{results['days']} days, {results['sent']} of them over DICOM, {results['posted']} by `POST /series` as a "
        f"gateway would; {results['database']}; {results['restarts']} restarts, {results['purges']} purges, which "
        f"deleted {results['purged']} series; {results['took_s'] / 60:.0f} minutes on {results['cores']} cores; "
        f"seed {results['seed']}."
    )


def last_line(results: dict[str, Any]) -> str:
    """Return what the command ends with."""
    grows = sum(each.is_unexplained for each in growths(results["samples"]))
    told = {"series": results["series"], "lost": results["lost"], "doubled": results["doubled"], "grows": grows}
    return "soak: " + " ".join(f"{name}={n}" for name, n in told.items())


def _short(value: float, sign: str = "") -> str:
    text = f"{value:{sign}.{0 if abs(value) >= 100 else 2 if abs(value) < 1 else 1}f}"
    return "0" if not float(text) else text.rstrip("0").rstrip(".") if "." in text else text


def save(results: dict[str, Any], path: Path) -> None:
    """Write results as JSON, each measure on one line."""
    whole = json.dumps(results | {"samples": None}, indent=1)
    rows = (f"  {json.dumps(name)}: {json.dumps(values)}" for name, values in results["samples"].items())
    path.write_text(whole.replace('"samples": null', '"samples": {\n' + ",\n".join(rows) + "\n }") + "\n")
