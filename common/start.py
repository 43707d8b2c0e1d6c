"""Start either program: run its command line, or say what to type if Python or a package is missing."""

import shlex
import sys
from collections.abc import Callable
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

HERE = Path(__file__).parents[1]
OLDEST = (3, 11)
NEEDED = (
    "aiosqlite",
    "alembic",
    "asyncpg",
    "click",
    "dotenv",
    "fastapi",
    "fastapi_offline",
    "httpx",
    "opentelemetry",
    "prometheus_client",
    "pydantic",
    "pydicom",
    "pynetdicom",
    "rich",
    "sqlalchemy",
    "structlog",
    "uvicorn",
)
"""The packages of requirements.txt that are imported. Some are installed on many machines outside the environment."""


def program(commands: str, *runs: Callable[..., Any]) -> None:
    """Run the command line of the module `commands`, and exit. If Python or a package is missing, say what to type.

    `runs` are functions of the program that was started; they are passed to the command line, which calls them.
    """
    missing = [name for name in NEEDED if find_spec(name) is None]
    if missing or sys.version_info < OLDEST:
        sys.exit(what_to_type(missing))
    import_module(commands).command_line(*runs)()


def later(module: str, name: str, *args: Any, **kwargs: Any) -> Any:
    """Import a module and call a function of it; return its result."""
    return getattr(import_module(module), name)(*args, **kwargs)


def what_to_type(missing: list[str]) -> str:
    """Say why the program cannot start with this Python, and give the command that works."""
    more = f" and {len(missing) - 3} more" if len(missing) > 3 else ""
    why = f"older than Python {'.'.join(map(str, OLDEST))}"
    if missing:
        why = f"without what this needs ({', '.join(missing[:3])}{more})"
    python = HERE / ".venv" / "bin" / "python"
    typed = shlex.join([str(python), *sys.argv])
    if python.exists():
        return f"{sys.executable} is {why}. Type:\n  {typed}"
    made = f"python3 -m venv {HERE / '.venv'} && {python} -m pip install -r {HERE / 'requirements.txt'}"
    return f"{sys.executable} is {why}. Type:\n  {made}\n  {typed}"
