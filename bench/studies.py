"""The half of `make policies` that judges when a study is complete; alone: `python -m bench.studies`.

In virtual time, with the gateway's collector and the server's rules, on made-up sites (bench/study_sites.py) or on
somebody else's traces. The truth is that a study is complete after its last new image.
"""

import argparse
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from rich.console import Console

from bench import study_sites
from bench.simulation import Candidate, all_cores, shipped
from bench.study_simulation import POLICIES, Heard, StudyOutcome, heard, heard_of, judge, together
from bench.traces import read_trace
from gateway.idle import Adaptive

OURS = "ours"
TUNING, JUDGING = range(100, 103), range(210, 213)  # seeds of made-up runs
IDLE_TIMEOUT_S, CEILING_S = shipped("idle_timeout_s"), shipped("idle_max_s")
SERIES = {asks: Candidate("adaptive", lambda: Adaptive(IDLE_TIMEOUT_S, CEILING_S), asks) for asks in (False, True)}
"""How the gateways decide about the series, with and without a PACS."""

Load = Callable[[], Heard]
"""Plays one run up to the server; another process can call it."""
Results = dict[str, dict[str, StudyOutcome]]
"""By row and policy."""


@dataclass(frozen=True)
class Trial:
    """Runs that belong together, by row of their table, and who is tried on them."""

    name: str
    rows: Mapping[str, Sequence[Load]]
    policies: Sequence[str] = tuple(POLICIES)


def own_trials(seeds: Sequence[int]) -> list[Trial]:
    """Return the project's own: the sites, and the same behind PACS that can be asked."""
    kinds = {"studies": study_sites.KINDS, "studies with a PACS": study_sites.ASKED}
    rows = {
        name: {kind.name: [partial(site, kind.name, seed) for seed in seeds] for kind in some}
        for name, some in kinds.items()
    }
    asked = [name for name in POLICIES if name != "ours, required series"]
    return [Trial("studies", rows["studies"]), Trial("studies with a PACS", rows["studies with a PACS"], asked)]


def foreign_trial(paths: Sequence[Path]) -> Trial:
    """Return somebody else's."""
    return Trial("studies", {path.stem: [partial(recorded, path)] for path in paths}, list(POLICIES)[:-1])


def site(name: str, seed: int) -> Heard:
    (kind,) = (kind for kind in (*study_sites.KINDS, *study_sites.ASKED) if kind.name == name)
    return heard(kind.make(seed), SERIES[kind.pacs != ""])


def recorded(path: Path) -> Heard:
    return heard_of(read_trace(path), SERIES[False])


# --- judging ---------------------------------------------------------------------------------------------------


def judged(load: Load, policies: Sequence[str]) -> list[StudyOutcome]:
    """Return what each policy does on one run. Another process calls it."""
    run = load()
    return [judge(run, POLICIES[name]) for name in policies]


def tried(trial: Trial) -> Results:
    """Return the outcome of every policy on every row."""
    runs = [(row, load) for row, loads in trial.rows.items() for load in loads]
    results: Results = {row: {name: StudyOutcome() for name in trial.policies} for row in trial.rows}
    with all_cores(len(runs)) as map_all:
        found = map_all(judged, [load for _, load in runs], [trial.policies] * len(runs))
        for (row, _), outcomes in zip(runs, found, strict=True):
            for name, outcome in zip(trial.policies, outcomes, strict=True):
                results[row][name] += outcome
    return results


# --- tables ----------------------------------------------------------------------------------------------------


def tables(results: Results, policies: Sequence[str]) -> Iterator[list[str]]:
    """Yield a table by policy, and one by site of what each policy does there."""
    everything = {name: together(rows[name] for rows in results.values()) for name in policies}
    head = [
        "policy",
        "false per 1000 studies",
        "of these `verified`",
        "latency, median",
        "95 %",
        "`verified`",
        "studies",
    ]
    yield _table(head, [[_bold(name), *_figures(outcome)] for name, outcome in everything.items()])
    if len(results) > 1:
        head = ["false per 1000 studies; latency, median; 95 %", *map(_bold, policies)]
        yield _table(head, [[row, *(_short(some[name]) for name in policies)] for row, some in results.items()])


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    return [f"| {' | '.join(row)} |" for row in (head, ["---"] * len(head), *rows)]


def _bold(name: str) -> str:
    return f"**{name}**" if name == OURS else name


def _figures(o: StudyOutcome) -> list[str]:
    shown = [f"{o.false_per_1000:.1f}", f"{1000 * o.false_verified / o.studies:.1f}"]
    shown += [f"{o.latency_s(50):.0f} s", f"{o.latency_s(95):.0f} s"]
    return [*shown, f"{100 * o.verified / o.studies:.0f} %", f"{o.studies}"]


def _short(o: StudyOutcome) -> str:
    return f"{o.false_per_1000:.1f}; {o.latency_s(50):.0f} s; {o.latency_s(95):.0f} s"


def last_lines(trial: Trial, results: Results) -> Iterator[str]:
    """Yield what a program may look for."""
    for name in trial.policies:
        o = together(rows[name] for rows in results.values())
        figures = f"false={o.false_per_1000:.1f} verified_false={o.false_verified}"
        yield f"{trial.name}, {name}: {figures} p50={o.latency_s(50):.0f} p95={o.latency_s(95):.0f}"


def run(trials: Sequence[Trial], console: Console) -> dict[str, list[list[str]]]:
    """Try all policies and print what they do; return the tables, by trial."""
    shown = {}
    for trial in trials:
        results = tried(trial)
        shown[trial.name] = list(tables(results, trial.policies))
        for lines in shown[trial.name]:
            console.print(f"{trial.name}:", *lines, sep="\n", markup=False, highlight=False, soft_wrap=True)
        for line in last_lines(trial, results):
            console.print(f"completion: {line}", soft_wrap=True)
    return shown


def document(shown: dict[str, list[list[str]]]) -> None:
    """Write docs/completion.md's figures of studies."""
    from bench.chart import write_studies  # noqa: PLC0415 - matplotlib is slow to import

    write_studies(shown)


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m bench.studies", description=__doc__)
    parser.add_argument("--tuning", action="store_true", help="the made-up runs that the constants were chosen on")
    parser.add_argument("--seeds", type=int, metavar="N", help="only N runs of each kind, and write no document")
    options = parser.parse_args(arguments)
    shown = run(own_trials((TUNING if options.tuning else JUDGING)[: options.seeds]), Console(width=140))
    if not (options.tuning or options.seeds):
        document(shown)
    return 0


if __name__ == "__main__":
    sys.exit(main())
