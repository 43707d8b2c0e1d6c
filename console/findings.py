"""Run the checks of `check` side by side, each with a time limit, and print what they find and how to fix it."""

import asyncio
import json
import ssl
import sys
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from inspect import iscoroutinefunction
from typing import Literal, cast

import click
from rich.console import Console
from rich.table import Table
from rich.text import Text

from common.errors import SeriesGatewayError, printable
from common.logs import places
from common.settings import SettingsError
from common.threads import in_thread

FAILED = 3
"""Exit code if a check failed. Warnings do not count."""
COLOURS = {"ok": "green", "warning": "yellow", "failed": "bold red"}
State = Literal["ok", "warning", "failed"]


@dataclass(frozen=True, slots=True)
class Finding:
    """One line of the result: what was checked, its state, what was found, and how to fix it if it is not ok."""

    what: str
    state: State
    detail: str
    cure: str = ""


Check = Callable[[], Sequence[Finding]] | Callable[[], Awaitable[Sequence[Finding]]]
"""A check. A plain function runs in its own thread, a coroutine function in the event loop."""


def ok(what: str, detail: str) -> Finding:
    return Finding(what, "ok", detail)


def warning(what: str, detail: str, cure: str) -> Finding:
    return Finding(what, "warning", detail, cure)


def failed(what: str, detail: str, cure: str) -> Finding:
    return Finding(what, "failed", detail, cure)


def of_error(what: str, error: SeriesGatewayError) -> Finding:
    """Make a failed finding of one of our errors, whose last sentence says how to fix it."""
    problem, _, cure = str(error).rpartition(". ")
    return failed(what, problem or cure, cure)


def of_settings(error: SettingsError) -> list[Finding]:
    """Make failed findings of wrong settings. Without settings, nothing else can be checked."""
    cure = "Correct it in the environment, in .env, or on the command line."
    return [failed("settings", line, cure) for line in str(error).splitlines()]


def certificate_problem(error: BaseException | None) -> str | None:
    """Return what is wrong with a server's certificate, if that caused the error; otherwise None."""
    while error is not None:
        if isinstance(error, ssl.SSLCertVerificationError):
            return error.verify_message
        error = error.__cause__ or error.__context__
    return None


async def find(checks: Mapping[str, Check], timeout_s: float) -> list[Finding]:
    """Run all checks at the same time; return their findings in order. A check that raises or hangs has failed."""
    found = await asyncio.gather(*(_one(what, check, timeout_s) for what, check in checks.items()))
    return [finding for findings in found for finding in findings]


async def _one(what: str, check: Check, timeout_s: float) -> Sequence[Finding]:
    try:
        async with asyncio.timeout(timeout_s):
            if iscoroutinefunction(check):
                return cast(Sequence[Finding], await check())
            return cast(Sequence[Finding], await in_thread(check, what))
    except TimeoutError:
        return [
            failed(
                what, f"no result within {timeout_s:g} s", "Something it needs hangs: a disk, a peer or a name server."
            )
        ]
    except Exception as error:  # a machine can be broken in any way; the error's text could hold anything
        return [failed(what, f"the check itself failed: {'; '.join(places(error))}", "Please report this line.")]


def show(findings: Sequence[Finding], as_json: bool) -> int:
    """Print the findings; return the exit code."""
    code = FAILED if any(finding.state == "failed" for finding in findings) else 0
    if as_json:
        click.echo(json.dumps({"ok": code == 0, "findings": [asdict(finding) for finding in findings]}, indent=2))
        return code
    if sys.stdout.isatty():
        Console(highlight=False).print(table(findings))
    else:
        width = max(len(finding.what) for finding in findings)
        for finding in findings:
            click.echo(f"{finding.state:8} {printable(finding.what):{width}}  {printable(finding.detail)}")
            if finding.cure:
                click.echo(f"{'':8} {'':{width}}  → {printable(finding.cure)}")
    counts = [f"{sum(finding.state == state for finding in findings)} {state}" for state in COLOURS]
    click.echo(", ".join(counts))
    return code


def table(findings: Sequence[Finding]) -> Table:
    """Return a table with a line for each finding, and below it how to fix it."""
    lines = Table.grid(padding=(0, 2))
    for finding in findings:
        text = Text(printable(finding.detail))
        if finding.cure:
            text.append(f"\n→ {printable(finding.cure)}", style="cyan")
        lines.add_row(Text(finding.state, style=COLOURS[finding.state]), Text(printable(finding.what)), text)
    return lines
