"""What stands below a program's log lines on a terminal, drawn again and again; nothing of it stays there."""

import asyncio
import os
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

from rich.console import Console, RenderableType
from rich.live import Live
from rich.text import Text

REFRESH_S = 0.5
FIXED_SIZE = ("COLUMNS", "LINES")  # variables that rich would believe more than the terminal


def can_draw() -> bool:
    """Whether stderr is a terminal whose cursor moves, and ours now."""
    return sys.stderr.isatty() and os.environ.get("TERM", "dumb") not in ("dumb", "unknown") and _in_foreground()


def _in_foreground() -> bool:
    """Whether the terminal is ours now: with `&` it is the shell's."""
    try:
        return os.tcgetpgrp(sys.stderr.fileno()) == os.getpgrp()
    except OSError:  # not the terminal that we were started on
        return True


def terminal() -> Console:
    """Return stderr as rich's console, as large as the terminal is at any moment."""
    return Console(stderr=True, _environ={k: v for k, v in os.environ.items() if k not in FIXED_SIZE})


def one_line(text: Text) -> Text:
    """Cut what has no room, instead of a line more."""
    text.no_wrap, text.overflow = True, "ellipsis"
    return text


@asynccontextmanager
async def below_the_log(console: Console, draw: Callable[[], RenderableType]) -> AsyncIterator[None]:
    """Show what `draw` returns, every REFRESH_S, until left."""

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
