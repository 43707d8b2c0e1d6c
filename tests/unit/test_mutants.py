"""`make mutants`: what is broken and what is not, the same for the same seed; what no test notices is shown."""

import textwrap
from pathlib import Path

import pytest

from bench.mutants import TESTS, NoBaseline, Trials, files_for, sample
from bench.mutations import mutants
from tests.rig.papers import ROOT

TOY = """
def least(a, b):
    return a if a < b else b
"""
TOY_TEST = """
from toy import least


def test_least():
    assert (least(1, 2), least(2, 1)) == (1, 2 - 1)
"""


def changed(source: str) -> set[str]:
    """The lines that stand in place of the only line of a function's body."""
    source = f"def f(a, b):\n    {source}\n"
    return {mutant.of(source).splitlines()[1].strip() for mutant in mutants(source)}


@pytest.mark.parametrize(
    ("line", "mutant"),
    [
        ("return a < b", "return (a <= b)"),
        ("return a is not b", "return (a is b)"),
        ("return a + b", "return (a - b)"),
        ("return a and b", "return (a or b)"),
        ("return not a", "return (a)"),
        ("return a.b", "return None"),
        ("return a if b else 'c'", "return 'c' if b else a"),
        ("return [c for c in a if c]", "return [c for c in a if True]"),
        ("return min(a, b)", "return max(a, b)"),
        ("return a[:31]", "return a[:32]"),
        ("return a(b, c=True)", "return a(b, c=False)"),
        ("return a(b, c=True)", "return a(b, )"),
        ("a.b = b", "pass"),
        ("a.b += 1", "pass"),
        ("a.b(b)", "pass"),
        ("raise a", "pass"),
        ("if a: b()", "if not (a): b()"),
        ("a('PRAGMA synchronous=FULL')", "a('PRAGMA synchronous=OFF')"),
        ("a(f'UPDATE {b} SET c = 1 WHERE d AND e')", "a(f'UPDATE {b} SET c = 1 WHERE d OR e')"),
        ("a('idle')", "a('idle?')"),
    ],
)
def test_a_line_is_broken_in_the_ways_that_a_mistake_would(line: str, mutant: str) -> None:
    assert mutant in changed(line)


@pytest.mark.parametrize(
    "line",
    [
        "a = b",
        "c: 'int | None' = a",
        "'a docstring'",
        "log.info('event', seconds=1)",
        "raise",
        "return",
        "import a.b",
    ],
)
def test_what_cannot_change_behaviour_is_left_alone(line: str) -> None:
    assert changed(line) <= {"pass"}  # a raise that is left out


def test_outside_functions_sql_and_what_stands_in_a_standard_are_mutated_and_tuned_numbers_are_not() -> None:
    source = 'WAIT_S = 3.0\nSTATUS = 0xA700\nQUERY = "SELECT a ORDER BY b DESC"\nNAME = "a"\n'
    assert {mutant.text for mutant in mutants(source)} == {str(0xA701), "ASC"}


def test_awaited_calls_and_caught_errors_are_left_out_also_of_async_functions() -> None:
    source = textwrap.dedent("""
        async def f(a):
            try:
                await a()
            except (KeyError, OSError):
                return 1
    """)
    broken = {mutant.of(source) for mutant in mutants(source)}
    assert source.replace("await a()", "pass") in broken
    assert source.replace("OSError", "()") in broken


def test_a_mutant_is_shown_by_its_line_before_and_after() -> None:
    (shown,) = (mutant.shown(TOY) for mutant in mutants(TOY) if "<=" in mutant.text)
    assert shown == "3: - return a if a < b else b  + return a if (a <= b) else b"


def test_a_seed_draws_the_same_mutants_and_another_seed_others() -> None:
    source = (ROOT / "gateway" / "idle.py").read_text()
    first, again, other = (sample("idle", source, 20, seed) for seed in (1, 1, 2))
    assert first == again != other
    assert len({*first}) == 20
    assert len(sample("toy", TOY, 1000, 1)) == len(mutants(TOY))  # there are no more


def test_every_module_and_its_tests_are_there() -> None:
    for module in TESTS:
        assert mutants((ROOT / module).read_text()), module
        assert all((ROOT / file).is_file() for file in files_for(module)), module


@pytest.fixture
def trials(tmp_path: Path) -> Trials:
    root = tmp_path / "tree"
    root.mkdir()
    (root / "toy.py").write_text(TOY)
    (root / "test_toy.py").write_text(TOY_TEST)
    (root / "test_hangs.py").write_text("import threading\ndef test_hangs(): threading.Event().wait()\n")
    (root / "test_fails.py").write_text("def test_fails(): assert False, 'as ever'\n")
    return Trials(root, tmp_path / "copies", preloaded=["pytest"])


def test_what_a_test_notices_is_killed_and_the_rest_is_shown(trials: Trials, tmp_path: Path) -> None:
    result = trials.run("toy.py", ["test_toy.py"], 100, 1)
    assert result.tried == len(mutants(TOY))
    assert result.lived == ["3: - return a if a < b else b  + return a if (a <= b) else b"]  # no test has equal ones
    assert (tmp_path / "tree" / "toy.py").read_text() == TOY


def test_tests_that_do_not_end_have_noticed_and_those_that_fail_anyway_can_tell_nothing(trials: Trials) -> None:
    assert not trials.passes(trials.copies[0], ["test_hangs.py"], clock_s=3.0, cpu_s=60.0)
    with pytest.raises(NoBaseline, match="as ever"):
        trials.run("toy.py", ["test_fails.py"], 1, 1)
