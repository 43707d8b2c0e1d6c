"""A worker's thread does what it is given, in order, whatever becomes of those who wait."""

import asyncio
import threading
from pathlib import Path

import pytest

from bench.rig.processes import ROOT
from common.threads import Worker


async def test_a_worker_runs_everything_in_order_in_one_thread() -> None:
    done: list[tuple[int, str]] = []

    def do(n: int, *, word: str) -> str:
        done.append((n, word))
        return f"{word} in {threading.current_thread().name}"

    with Worker("journal") as worker:
        said = await asyncio.gather(*(worker.run(do, n, word="done") for n in range(20)))
    assert done == [(n, "done") for n in range(20)]
    assert set(said) == {"done in journal"}


async def test_an_error_is_raised_where_it_is_awaited_and_the_thread_goes_on() -> None:
    def fail(error: Exception) -> None:
        raise error

    with Worker("journal") as worker:
        for error, raised in ((OSError("full"), OSError), (StopIteration(), RuntimeError)):
            with pytest.raises(raised):
                await worker.run(fail, error)
        assert await worker.run(lambda: 1) == 1


async def test_what_was_given_is_run_though_nobody_waits_and_before_the_worker_ends() -> None:
    go = threading.Event()
    done: list[int] = []
    with Worker("journal") as worker:
        first = worker.run(go.wait)
        second = worker.run(done.append, 2)
        second.cancel()
        go.set()
        assert await first
    assert done == [2]
    with pytest.raises(RuntimeError, match="journal has ended"):
        worker.run(done.append, 3)
    await asyncio.sleep(0)  # the loop settles what was cancelled
    assert second.cancelled()


@pytest.mark.parametrize(
    "path", [ROOT / "client.py", ROOT / "scp.py", *ROOT.glob("dicom/*.py"), *ROOT.glob("gateway/*.py")]
)
def test_no_timer_is_asked_when_it_is_due(path: Path) -> None:
    """uvloop's timers raise AttributeError between the moment they fire and their call."""
    assert ".when()" not in path.read_text()
