"""A `.env` file, of which some settings change and every other line stays as it is.

python-dotenv's parser says what each line holds. Its `set_key` does not write here: it drops blank lines and comments
beside what it replaces, the file's line ends and its byte order mark, adds to a line with an open quote so that all is
lost, and does not wait for the disk.
"""

import io
import os
import re
import tempfile
from collections.abc import Mapping
from pathlib import Path

from dotenv import dotenv_values
from dotenv.parser import Binding, parse_stream

from common.errors import GatewayError

MODE = 0o600  # of the file: it may hold a key or a password
BARE = re.compile(r"[A-Za-z0-9_@%+=:,./-]*")  # what python-dotenv, a shell and systemd read alike without quotes
LINE = re.compile(  # as in dotenv/parser.py
    r"""(?P<blank>\s*?)(?P<name>[^\S\r\n]*(?:export[^\S\r\n]+)?(?:'[^']+'|[^=\#\s]+))[^\S\r\n]*
    (?:=[^\S\r\n]*(?:(?:'(?:\\.|[^'\\])*'|"(?:\\.|[^"\\])*")(?P<quoted>[^\S\r\n]*\#[^\r\n]*)?
        |[^\r\n]*?(?P<plain>[^\S\r\n]+\#[^\r\n]*)?)
      |(?P<none>\#[^\r\n]*)?)
    [^\S\r\n]*(?P<end>\r\n|\n|\r|)""",
    re.VERBOSE | re.DOTALL,
)


class DotenvUnusable(GatewayError):
    """The file cannot be read, or not be changed without harm to its other lines. It is as it was."""


def read(path: Path) -> str:
    """The text with its own line ends; empty where there is no file. Raises DotenvUnusable."""
    try:
        return path.read_bytes().decode()
    except FileNotFoundError:
        return ""
    except UnicodeDecodeError:
        raise DotenvUnusable(f"{path} is not UTF-8 text. Save it as such, or move it away.") from None
    except OSError as error:
        raise DotenvUnusable(
            f"{path} cannot be read: {error.strerror}. Let this user read it, or move it away."
        ) from error


def values(text: str) -> dict[str, str]:
    """What the settings will find there, by name in capitals; of a name that stands there twice, the last."""
    found = dotenv_values(stream=io.StringIO(text))
    return {name.upper(): value for name, value in found.items() if value is not None}


def merged(text: str, changes: Mapping[str, str | None]) -> str:
    """The text in which each of these names stands once with its value, or not at all where that is None.

    Raises DotenvUnusable where a line that nobody can read, such as one with an open quote, would swallow others.
    """
    mark = text[: text.startswith("\ufeff")]
    bindings = list(parse_stream(io.StringIO(text)))
    last = {_name(binding): number for number, binding in enumerate(bindings)}
    present = values(text)
    lines = [
        binding.original.string
        if _name(binding) not in changes
        else _replaced(binding, _name(binding), changes, present, is_last=last[_name(binding)] == number)
        for number, binding in enumerate(bindings)
    ]
    end = "\r\n" if "\r\n" in text else "\n"
    kept = "".join(lines)
    added = [
        f"{name}={_quoted(name, value)}{end}"
        for name, value in changes.items()
        if name not in last and value is not None
    ]
    if added and kept and not kept.endswith(("\n", "\r")):
        kept += end
    result = mark + kept + "".join(added)
    _prove(text, result, changes)
    return result


def write(path: Path, text: str) -> None:
    """Put the text there, whole or not at all, for its owner only. Raises DotenvUnusable."""
    path = Path(os.path.realpath(path))  # behind a link, the file that it leads to
    try:
        before = path.stat() if path.exists() else None
        descriptor, name = tempfile.mkstemp(dir=path.parent, prefix=f"{path.name}.")
        try:
            with os.fdopen(descriptor, "w", encoding="utf-8", newline="") as file:
                if before is not None and (before.st_uid, before.st_gid) != (os.geteuid(), os.getegid()):
                    os.fchown(descriptor, before.st_uid, before.st_gid)  # root changes what a service reads
                os.fchmod(descriptor, MODE)
                file.write(text)
                file.flush()
                os.fsync(descriptor)
            Path(name).replace(path)
        except BaseException:  # Ctrl-C, too
            Path(name).unlink(missing_ok=True)
            raise
        _sync(path.parent)
    except OSError as error:
        raise DotenvUnusable(f"{path} cannot be written: {error.strerror}. It is as it was.") from error


def _sync(folder: Path) -> None:
    """Wait until a new name is on the disk."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _name(binding: Binding) -> str:
    return (binding.key or "").upper()  # settings are found whatever their case


def _replaced(
    binding: Binding, name: str, changes: Mapping[str, str | None], present: Mapping[str, str], *, is_last: bool
) -> str:
    """The line with its new value: only the last of a name counts, and an earlier one may hold an old key."""
    value, line = changes[name], binding.original.string
    if is_last and value is not None and present.get(name) == value:
        return line
    parts = LINE.fullmatch(line)
    blank = parts["blank"] if parts else ""
    if not is_last or value is None:
        return blank
    if parts is None:
        return f"{name}={_quoted(name, value)}\n"
    comment = (parts["quoted"] or parts["plain"] or parts["none"] or "").strip()
    return f"{blank}{parts['name']}={_quoted(name, value)}{comment and f'  {comment}'}{parts['end']}"


def _quoted(name: str, value: str) -> str:
    """As python-dotenv reads it back. Raises DotenvUnusable where it could not."""
    escaped = value.replace("\\", "\\\\").replace("'", "\\'")
    quoted = value if BARE.fullmatch(value) else f"'{escaped}'"
    if values(f"{name}={quoted}").get(name) != value or re.search(r"[\r\n\0]", value):
        raise DotenvUnusable(
            f"{name} holds what a .env file cannot: a line break, or ${{…}}. Give it in the environment."
        )
    return quoted


def _prove(before: str, after: str, changes: Mapping[str, str | None]) -> None:
    """Read both again: every other name still has its value."""
    old, new = (dict(_raw(text)) for text in (before, after))
    wanted = {name: value for name, value in old.items() if name not in changes}
    if {name: value for name, value in new.items() if name not in changes} != wanted or any(
        values(after).get(name) != value for name, value in changes.items()
    ):
        broken = next((b.original.line for b in parse_stream(io.StringIO(before)) if b.error), None)
        where = f"line {broken} of .env cannot be read (an open quote?)" if broken else ".env cannot be read safely"
        raise DotenvUnusable(f"{where}. Mend or remove it; nothing was changed.")


def _raw(text: str) -> list[tuple[str, str | None]]:
    """Names and values as they stand there, ${…} untouched."""
    return [(_name(binding), binding.value) for binding in parse_stream(io.StringIO(text)) if binding.key]
