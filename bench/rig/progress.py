"""A bar on a terminal for what takes longer than anyone wants to look at nothing; elsewhere nothing."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn


@contextmanager
def bar(console: Console, what: str, total: int) -> Iterator[Callable[[], None]]:
    """Yields what is to be called at each step; threads may. What else is printed stands above the bar."""
    columns = SpinnerColumn(), TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn()
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as progress:
        yield partial(progress.advance, progress.add_task(what, total=total))
