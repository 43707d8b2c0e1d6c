"""What stands below a program's log lines on a terminal, drawn again and again; nothing of it stays there."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

from rich.console import Console, RenderableType
from rich.live import Live

REFRESH_S = 0.5


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
