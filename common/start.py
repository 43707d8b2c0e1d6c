"""How both programs start: with their command line, or with what to type where their packages are missing."""

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
"""What is imported of requirements.txt. Some of it stands on many machines outside the environment, too."""


def program(commands: str, *runs: Callable[..., Any]) -> None:
    """Run the command line of a module, and end. Where Python or a package is not what it takes, say what to type.

    `runs` is handed to it: what it runs of the door that was started.
    """
    missing = [name for name in NEEDED if find_spec(name) is None]
    if missing or sys.version_info < OLDEST:
        sys.exit(what_to_type(missing))
    import_module(commands).command_line(*runs)()


def later(module: str, name: str, *args: Any, **kwargs: Any) -> Any:
    """Call a function of a module, which is imported only now."""
    return getattr(import_module(module), name)(*args, **kwargs)


def what_to_type(missing: list[str]) -> str:
    """Why it does not start with this Python, and the command that does."""
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
