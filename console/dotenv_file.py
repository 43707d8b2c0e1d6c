"""Change some settings in a `.env` file and leave every other line as it is.

python-dotenv's parser reads the lines. Its `set_key` is not used to write them: it drops blank lines and comments near
the line it replaces, changes line ends and the byte order mark, damages the file if a line has an open quote, and does
not sync the file to disk.
"""

import io
import os
import re
import tempfile
from collections.abc import Mapping
from pathlib import Path

from dotenv import dotenv_values
from dotenv.parser import Binding, parse_stream

from common.at_rest import name_for_good
from common.errors import SeriesGatewayError

MODE = 0o600  # of the file, since it may hold a key or a password
BARE = re.compile(r"[A-Za-z0-9_@%+=:,./-]*")  # values that python-dotenv, shells and systemd read without quotes
LINE = re.compile(  # the same syntax as in dotenv/parser.py
    r"""(?P<blank>\s*?)(?P<name>[^\S\r\n]*(?:export[^\S\r\n]+)?(?:'[^']+'|[^=\#\s]+))[^\S\r\n]*
    (?:=[^\S\r\n]*(?:(?:'(?:\\.|[^'\\])*'|"(?:\\.|[^"\\])*")(?P<quoted>[^\S\r\n]*\#[^\r\n]*)?
        |[^\r\n]*?(?P<plain>[^\S\r\n]+\#[^\r\n]*)?)
      |(?P<none>\#[^\r\n]*)?)
    [^\S\r\n]*(?P<end>\r\n|\n|\r|)""",
    re.VERBOSE | re.DOTALL,
)


class DotenvUnusable(SeriesGatewayError):
    """The file cannot be read, or cannot be changed without damage to its other lines. It was not changed."""


def read(path: Path) -> str:
    """Return the file's text with its line ends unchanged; empty if there is no file. Raises DotenvUnusable."""
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
    """Return the values that the settings will read, by name in capitals. If a name occurs twice, the last counts."""
    found = dotenv_values(stream=io.StringIO(text))
    return {name.upper(): value for name, value in found.items() if value is not None}


def merged(text: str, changes: Mapping[str, str | None]) -> str:
    """Return the text with the changes: each name occurs once with its value, or not at all if that is None.

    1. Split the text into lines, as python-dotenv reads them; keep the byte order mark.
    2. Replace the last line of each changed name, and remove its earlier ones; keep comments and line ends.
    3. Append the names that did not occur.
    4. Read both texts and check that every other name still has its value.

    Raises DotenvUnusable if step 4 fails, for example because a line has an open quote and swallows others.
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
    """Write the file completely or not at all, readable by its owner only. Raises DotenvUnusable."""
    path = Path(os.path.realpath(path))  # if it is a link, replace the file that it leads to
    try:
        before = path.stat() if path.exists() else None
        descriptor, name = tempfile.mkstemp(dir=path.parent, prefix=f"{path.name}.")
        try:
            with os.fdopen(descriptor, "w", encoding="utf-8", newline="") as file:
                if before is not None and (before.st_uid, before.st_gid) != (os.geteuid(), os.getegid()):
                    os.fchown(descriptor, before.st_uid, before.st_gid)  # root must not take the file from its user
                os.fchmod(descriptor, MODE)
                file.write(text)
            name_for_good(Path(name), path)
        except BaseException:  # Ctrl-C as well
            Path(name).unlink(missing_ok=True)
            raise
    except OSError as error:
        raise DotenvUnusable(f"{path} cannot be written: {error.strerror}. It was not changed.") from error


def _name(binding: Binding) -> str:
    return (binding.key or "").upper()  # names of settings ignore case


def _replaced(
    binding: Binding, name: str, changes: Mapping[str, str | None], present: Mapping[str, str], *, is_last: bool
) -> str:
    """Return a line with its new value. Only a name's last line counts; earlier ones are removed with their old key."""
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
    """Return a value, quoted so that python-dotenv reads it back. Raises DotenvUnusable if it could not."""
    escaped = value.replace("\\", "\\\\").replace("'", "\\'")
    quoted = value if BARE.fullmatch(value) else f"'{escaped}'"
    if values(f"{name}={quoted}").get(name) != value or re.search(r"[\r\n\0]", value):
        raise DotenvUnusable(
            f"{name} contains what a .env file cannot hold: a line break, or ${{…}}. Set it in the environment."
        )
    return quoted


def _prove(before: str, after: str, changes: Mapping[str, str | None]) -> None:
    """Check that every other name has the same value in both texts. Raises DotenvUnusable."""
    old, new = (dict(_raw(text)) for text in (before, after))
    wanted = {name: value for name, value in old.items() if name not in changes}
    if {name: value for name, value in new.items() if name not in changes} != wanted or any(
        values(after).get(name) != value for name, value in changes.items()
    ):
        broken = next((b.original.line for b in parse_stream(io.StringIO(before)) if b.error), None)
        where = f"line {broken} of .env cannot be read (an open quote?)" if broken else ".env cannot be read safely"
        raise DotenvUnusable(f"{where}. Correct or remove it; nothing was changed.")


def _raw(text: str) -> list[tuple[str, str | None]]:
    """Return the names and values without replacing ${…}."""
    return [(_name(binding), binding.value) for binding in parse_stream(io.StringIO(text)) if binding.key]
