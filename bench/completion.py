"""`make policies`: how often each idle policy is wrong about the end of a series, and how long it makes one wait.

Before that, the same of studies: bench/studies.py.

In virtual time, with the collector and the policies of the gateway, on traces: made-up ones with known trouble, those
recorded from real senders (bench/traces/*.jsonl), sites of every kind (bench/sites.py), PACS that can be asked, or,
with TRACES=folder, somebody else's. The truth is that a series is complete after its last new image in the file.
"""

import argparse
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import NamedTuple

from rich.console import Console

from bench import sites, studies
from bench.rig.processes import ROOT
from bench.rig.progress import bar
from bench.simulation import Candidate, Outcome, all_cores, judge, shipped, total
from bench.traces import BadTrace, Event, read_trace, synthetic
from gateway.idle import Adaptive, Estimator, Fixed, IdlePolicy, Phase, Quantile, Source

IDLE_TIMEOUT_S, CEILING_S = shipped("idle_timeout_s"), shipped("idle_max_s")
TUNING, JUDGING = range(100, 104), range(200, 206)  # seeds of made-up runs
STUDIES = 40  # of each kind, in each made-up run


# --- policies --------------------------------------------------------------------------------------------------


class NoHint(Adaptive):
    """Does not look at associations."""

    def timeout_s(self, source: Source, phase: Phase, longest_s: dict[Phase, float]) -> float:  # type: ignore[override]
        return super().timeout_s(source, Phase.OPEN, longest_s)

    def learn(self, source: Source, longest_s: dict[Phase, float]) -> None:  # type: ignore[override]
        super().learn(source, {Phase.OPEN: max(longest_s.values())})


@dataclass
class Rfc6298:
    """Mean plus four mean deviations, both as exponential moving averages (RFC 6298 §2)."""

    mean: float = 0.0
    deviation: float = 0.0
    count: int = 0

    def add(self, seconds: float) -> None:
        if self.count == 0:
            self.mean, self.deviation = seconds, seconds / 2
        else:
            self.deviation += (abs(self.mean - seconds) - self.deviation) / 4
            self.mean += (seconds - self.mean) / 8
        self.count += 1

    def bound_s(self) -> float:
        return self.mean + 4 * self.deviation

    def dump(self) -> object:
        return [self.mean, self.deviation, self.count]

    def load(self, dumped: object) -> None:
        raise NotImplementedError


def adaptive(estimator: Callable[[], Estimator], kind: type[Adaptive] = Adaptive) -> Callable[[], IdlePolicy]:
    return lambda: kind(IDLE_TIMEOUT_S, CEILING_S, estimator)


def fixed(seconds: float) -> Callable[[], IdlePolicy]:
    return lambda: Fixed(seconds)


DEFAULT = "adaptive"
ASKING = f"{DEFAULT} + PACS"
CANDIDATES = {
    candidate.name: candidate
    for candidate in (
        *(Candidate(f"fixed {seconds:g} s", fixed(seconds)) for seconds in (1, 2, 5, 60, 300)),
        Candidate("EMA, no release hint", adaptive(Rfc6298, NoHint)),
        Candidate("EMA", adaptive(Rfc6298)),
        Candidate("quantile, no release hint", adaptive(Quantile, NoHint)),
        Candidate(DEFAULT, adaptive(Quantile)),
        Candidate("fixed 5 s + PACS", fixed(5), asks=True),
        Candidate(ASKING, adaptive(Quantile), asks=True),
    )
}


# --- what is judged --------------------------------------------------------------------------------------------


class Traffic(NamedTuple):
    """One run: what came, and which series its PACS was itself still receiving."""

    events: list[Event]
    growing: frozenset[str] = frozenset()


Load = Callable[[], Traffic]
"""Reads or makes up one run; another process can call it."""


def made_up(seed: int) -> Traffic:
    return Traffic(synthetic(seed, STUDIES))


def recorded(path: Path) -> Traffic:
    return Traffic(read_trace(path))


def site(name: str, seed: int) -> Traffic:
    (kind,) = (kind for kind in (*sites.KINDS, *sites.ASKED) if kind.name == name)
    place = kind.make(seed)
    return Traffic(place.sorted(), frozenset(place.growing))


@dataclass(frozen=True)
class Trial:
    """Runs that belong together, by row of their table, and who is tried on them."""

    name: str
    rows: Mapping[str, Sequence[Load]]
    candidates: Sequence[str]
    groups: Mapping[str, Sequence[str]] = field(default_factory=dict)
    """Rows that a further row adds up."""

    @property
    def shown(self) -> str:
        """The candidate whose rows are told apart."""
        return DEFAULT if DEFAULT in self.candidates else ASKING


def own_trials(seeds: Sequence[int]) -> list[Trial]:
    """The project's own: made up, recorded, sites, and PACS that can be asked."""
    groups: dict[str, list[str]] = {"fast sites": [], "slow sites": [], "changing sites": []}
    for kind in sites.KINDS:
        groups[f"{kind.speed} sites"].append(kind.name)
    groups["all sites"] = [kind.name for kind in sites.KINDS]
    rows = {kind.name: [partial(site, kind.name, seed) for seed in seeds] for kind in sites.KINDS}
    asked = {kind.name: [partial(site, kind.name, seed) for seed in seeds] for kind in sites.ASKED}
    steady, pausing = [kind.name for kind in sites.ASKED[:-2]], [kind.name for kind in sites.ASKED[-2:]]
    return [
        Trial("made up", {"made up": [partial(made_up, seed) for seed in seeds]}, list(CANDIDATES)),
        Trial("recorded", trace_files(ROOT / "bench" / "traces"), list(CANDIDATES)),
        Trial("sites", rows, ["fixed 60 s", "fixed 300 s", DEFAULT], groups),
        Trial("PACS", asked, [ASKING], {"PACS": steady, "PACS behind a scanner that pauses": pausing}),
    ]


def foreign_trial(folder: Path) -> Trial:
    """Somebody else's. Raises BadTrace."""
    rows = trace_files(folder)
    return Trial(f"traces of {folder}", rows, list(CANDIDATES), {"all": list(rows)})


def trace_files(folder: Path) -> dict[str, list[Load]]:
    """Every *.jsonl of a folder that has an image in it. Raises BadTrace."""
    paths = [path for path in sorted(folder.glob("*.jsonl")) if any(e.event == "image" for e in read_trace(path))]
    if not paths:
        raise BadTrace(f"TRACES={folder}: no *.jsonl with an image in it. A gateway records one: GATEWAY_TRACE_PATH.")
    return {path.stem: [partial(recorded, path)] for path in paths}


def chosen(trials: Sequence[Trial], words: Sequence[str]) -> Iterator[Trial]:
    """Keep trials that a word names, and rows that have one in their name; `default` keeps the default policy only."""
    whole = {trial.name for trial in trials}.intersection(words)
    parts = [word for word in words if word != "default" and word not in whole]
    for trial in trials:
        everything = trial.name in whole or not (whole or parts)
        rows = {row: loads for row, loads in trial.rows.items() if everything or any(part in row for part in parts)}
        candidates = [c for c in trial.candidates if "default" not in words or c in (DEFAULT, ASKING)]
        groups = {group: [row for row in members if row in rows] for group, members in trial.groups.items()}
        if rows:
            yield replace(trial, rows=rows, candidates=candidates, groups={g: m for g, m in groups.items() if m})


# --- judging ---------------------------------------------------------------------------------------------------

Results = dict[str, dict[str, Outcome]]
"""By candidate and row."""


def judged(load: Load, candidates: Sequence[str]) -> list[Outcome]:
    """Return what each candidate does on one run. Another process calls it."""
    events, growing = load()
    return [judge([events], CANDIDATES[name], growing) for name in candidates]


def tried(trials: Sequence[Trial], console: Console) -> list[Results]:
    """The outcome of every candidate on every row of every trial."""
    runs = [(n, row, load) for n, trial in enumerate(trials) for row, loads in trial.rows.items() for load in loads]
    results: list[Results] = [
        {name: {row: Outcome() for row in trial.rows} for name in trial.candidates} for trial in trials
    ]
    candidates = [trials[n].candidates for n, _, _ in runs]
    with all_cores(len(runs)) as map_all, bar(console, "runs", len(runs)) as step:
        outcomes = map_all(judged, [load for _, _, load in runs], candidates)
        for (n, row, _), names, some in zip(runs, candidates, outcomes, strict=True):
            for name, outcome in zip(names, some, strict=True):
                results[n][name][row] += outcome
            step()
    return results


# --- tables ----------------------------------------------------------------------------------------------------

Column = tuple[str, Callable[[Outcome], str]]
COLUMNS: list[Column] = [
    ("false per 1000 series", lambda o: f"{o.false_per_1000:.1f}"),
    ("added latency, median", lambda o: f"{o.latency_s(50):.2f} s"),
    ("mean", lambda o: f"{o.mean_s:.2f} s"),
    ("p99", lambda o: f"{o.latency_s(99):.2f} s"),
    ("capped", lambda o: f"{100 * o.capped / o.series:.2f} %"),
    ("images after `capped`", lambda o: f"{o.after_capped}"),
    ("questions per series", lambda o: f"{o.questions / o.series:.1f}"),
    ("series", lambda o: f"{o.series}"),
]
VERIFIED: list[Column] = [
    ("false `verified`", lambda o: f"{o.false_verified}"),
    ("verified", lambda o: f"{100 * o.verified / o.series:.1f} %"),
]


def table(head: str, outcomes: Mapping[str, Outcome], columns: Sequence[Column] = COLUMNS) -> list[str]:
    lines = [f"| {' | '.join([head, *(name for name, _ in columns)])} |", f"|{'---|' * (len(columns) + 1)}"]
    return lines + [
        f"| {' | '.join([name, *(shown(outcome) for _, shown in columns)])} |" for name, outcome in outcomes.items()
    ]


def over_all(results: Results) -> dict[str, Outcome]:
    """Add up all rows of each candidate."""
    return {name: total(rows.values()) for name, rows in results.items()}


def with_groups(trial: Trial, rows: Mapping[str, Outcome]) -> dict[str, Outcome]:
    """Return the rows, and behind them each group of rows added up."""
    groups = {f"**{group}**": total(rows[row] for row in members) for group, members in trial.groups.items()}
    return {**rows, **groups}


def tables(trial: Trial, results: Results) -> Iterator[list[str]]:
    """Yield a table by policy, where there are several; by row of the default, where those have a meaning."""
    if trial.shown == ASKING:
        yield table("PACS", with_groups(trial, results[ASKING]), VERIFIED + COLUMNS)
        return
    if len(trial.candidates) > 1:
        policies = over_all(results)
        yield table("policy", {f"**{n}**" if n == DEFAULT else n: outcome for n, outcome in policies.items()})
    if trial.groups:
        yield table(
            f"{DEFAULT}, by {'kind' if trial.name == 'sites' else 'file'}", with_groups(trial, results[DEFAULT])
        )


def last_lines(trials: Sequence[Trial], results: Sequence[Results]) -> Iterator[str]:
    """Yield what a program may look for."""
    for trial, of_trial in zip(trials, results, strict=True):
        for group, members in trial.groups.items():
            outcome = total(of_trial[trial.shown][row] for row in members)
            verified = f"verified_false={outcome.false_verified} " if trial.shown == ASKING else ""
            yield f"{group} {verified}{figures(outcome)}"
    for of_trial in results:
        if DEFAULT in of_trial:
            yield f"default {DEFAULT} {figures(total(of_trial[DEFAULT].values()))}"
            return


def figures(outcome: Outcome) -> str:
    return (
        f"false={outcome.false_per_1000:.1f} p50={outcome.latency_s(50):.2f} p99={outcome.latency_s(99):.2f} "
        f"mean={outcome.mean_s:.2f} capped={100 * outcome.capped / outcome.series:.2f}%"
    )


def points(outcomes: Mapping[str, Outcome]) -> dict[str, tuple[float, float, float]]:
    return {name: (o.false_per_1000, o.latency_s(50), o.latency_s(99)) for name, o in outcomes.items()}


def document(trials: Sequence[Trial], results: Sequence[Results]) -> None:
    """Write docs/completion.md's figures and its plot."""
    from bench.chart import write_completion  # noqa: PLC0415 - matplotlib is slow to import

    shown = {trial.name: list(tables(trial, of_trial)) for trial, of_trial in zip(trials, results, strict=True)}
    plots = {t.name: points(over_all(r)) for t, r in zip(trials, results, strict=True) if len(t.candidates) > 1}
    write_completion(shown, plots)


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="make policies", description=__doc__)
    parser.add_argument("--traces", type=Path, help="judge the *.jsonl of this folder, and write no document")
    parser.add_argument("--tuning", action="store_true", help="the made-up runs that the constants were chosen on")
    parser.add_argument("--seeds", type=int, metavar="N", help="only N runs of each kind, and write no document")
    parser.add_argument(
        "--only",
        action="append",
        default=[],
        metavar="WORD",
        help="only 'made up', 'recorded', 'sites', 'PACS', 'studies', rows named like this, or the 'default' policy",
    )
    options = parser.parse_args(arguments)
    console = Console(width=140)
    seeds = (TUNING if options.tuning else JUDGING)[: options.seeds]
    try:
        trials = [foreign_trial(options.traces)] if options.traces else own_trials(seeds)
    except BadTrace as error:
        console.print(f"completion: {error}")
        return 1
    of_studies = not options.only or "studies" in options.only
    words = [word for word in options.only if word != "studies"]
    trials = list(chosen(trials, words)) if words or not options.only else []
    if not (trials or of_studies):
        console.print(f"completion: nothing is named {' or '.join(options.only)}; leave --only out to see all names.")
        return 1
    writes = not (options.traces or options.tuning or options.seeds or options.only)
    if of_studies:
        seeds = (studies.TUNING if options.tuning else studies.JUDGING)[: options.seeds]
        foreign = [studies.foreign_trial(sorted(options.traces.glob("*.jsonl")))] if options.traces else None
        shown = studies.run(foreign or studies.own_trials(seeds), console)
        if writes:
            studies.document(shown)
    results = tried(trials, console) if trials else []
    for trial, of_trial in zip(trials, results, strict=True):
        for lines in tables(trial, of_trial):
            console.print(f"{trial.name}:", *lines, sep="\n", markup=False, highlight=False, soft_wrap=True)
    if writes:
        document(trials, results)
    for line in last_lines(trials, results):
        console.print(f"completion: {line}", soft_wrap=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
