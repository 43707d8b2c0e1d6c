"""Print what a command found, as a table for people or as JSON."""

import json
import sys
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import click

from common.errors import printable
from common.times import stamp

if TYPE_CHECKING:
    from rich.text import Text

MAX_TIME = 2e11  # seconds since 1970; a larger number is not taken for a time (year 8307)


as_json = click.option("--json", "as_json", is_flag=True, help="Print JSON instead of a table.")


def show(result: dict[str, Any] | list[dict[str, Any]], as_json: bool) -> None:
    """Print a result as JSON or as a table: one row per item of a list, or one line per field of a single thing.

    Numbers whose names end in `_at` are printed as times.
    """
    result = [_timed(row) for row in result] if isinstance(result, list) else _timed(result)
    if as_json:
        click.echo(json.dumps(result, indent=2))
        return
    if not result:
        click.echo("none")
        return
    from rich.box import SIMPLE
    from rich.console import Console
    from rich.table import Table

    console = Console(width=None if sys.stdout.isatty() else 240, soft_wrap=not sys.stdout.isatty())
    if isinstance(result, dict):
        table = Table(box=SIMPLE, show_header=False)
        for name, value in result.items():
            table.add_row(name.replace("_", " "), _text(value))
    else:
        table = Table(*result[0], box=SIMPLE)
        for row in result:
            table.add_row(*(_text(value) for value in row.values()))
    console.print(table)


def _timed(row: dict[str, Any]) -> dict[str, Any]:
    """Return a row in which seconds since 1970 are replaced by printed times."""
    return {
        name: stamp(datetime.fromtimestamp(value, UTC))
        if name.endswith("_at") and isinstance(value, float) and 0 <= value < MAX_TIME
        else value
        for name, value in row.items()
    }


def _text(value: Any) -> "Text":
    from rich.text import Text

    if value is None:
        return Text("-")
    if isinstance(value, bool):
        return Text("yes" if value else "no")
    return Text(json.dumps(value, indent=1) if isinstance(value, dict | list) else printable(str(value)))
