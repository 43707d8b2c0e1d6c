"""Draw a status below the log lines on a terminal, again and again. It is removed at the end."""

import asyncio
import os
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

from rich.console import Console, RenderableType
from rich.live import Live
from rich.text import Text

REFRESH_S = 0.5  # time between two drawings
FIXED_SIZE = ("COLUMNS", "LINES")  # variables that rich would prefer to the terminal's size


def can_draw() -> bool:
    """Tell if stderr is a terminal that can move its cursor, and we run in its foreground."""
    return sys.stderr.isatty() and os.environ.get("TERM", "dumb") not in ("dumb", "unknown") and _in_foreground()


def _in_foreground() -> bool:
    """Tell if we run in the terminal's foreground. With `&` we do not."""
    try:
        return os.tcgetpgrp(sys.stderr.fileno()) == os.getpgrp()
    except OSError:  # it is not the terminal that we were started from
        return True


def terminal() -> Console:
    """Return stderr as rich's console, as large as the terminal is at any moment."""
    return Console(stderr=True, _environ={k: v for k, v in os.environ.items() if k not in FIXED_SIZE})


def one_line(text: Text) -> Text:
    """Shorten a text to one line instead of wrapping it."""
    text.no_wrap, text.overflow = True, "ellipsis"
    return text


@asynccontextmanager
async def below_the_log(console: Console, draw: Callable[[], RenderableType]) -> AsyncIterator[None]:
    """Show what `draw` returns, every REFRESH_S seconds, as long as the context is open."""

    async def refresh() -> None:
        while True:
            shown.update(draw(), refresh=True)
            await asyncio.sleep(REFRESH_S)

    with Live(console=console, auto_refresh=False, transient=True, redirect_stdout=False) as shown:
        async with asyncio.TaskGroup() as tasks:
            refreshing = tasks.create_task(refresh(), name="terminal")
            try:
                yield
            finally:
                refreshing.cancel()
