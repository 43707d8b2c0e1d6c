"""The kinds of settings. Each reads a value from text, or says what is wrong with it and shows a right example.

This is plain Python because every command imports it. pydantic, which does the same for HTTP bodies, takes longer to
import than `--help` takes in all.
"""

import math
import re
from collections.abc import Callable
from dataclasses import KW_ONLY, dataclass
from ipaddress import ip_address
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import urlsplit

TRUTHS = {"true": True, "yes": True, "on": True, "t": True, "y": True, "1": True}
TRUTHS |= {"false": False, "no": False, "off": False, "f": False, "n": False, "0": False}
DATABASE_URL = r"sqlite\+aiosqlite:///.+|postgresql\+asyncpg://[^/]*/.+"

Read = Callable[[Any], Any]
"""Turns what was given, text or a value, into the value. Raises ValueError; its text is shown after the name."""
T = TypeVar("T")


@dataclass(frozen=True)
class Setting:
    """The declaration of one setting: the only place that states its kind, bounds, default and meaning."""

    default: Any
    description: str
    read: Read
    _: KW_ONLY
    unit: str = "TEXT"
    """The placeholder for its value in `--help`."""
    choices: tuple[str, ...] = ()
    is_flag: bool = False
    """It is true or false, and takes no value on the command line."""
    is_secret: bool = False
    """Its value is never shown."""
    default_factory: Callable[[], Any] | None = None
    """Makes the default, if it differs each time."""
    variable: str = ""
    """Its environment variable, if that is not the prefix and the name."""

    def unset(self) -> Any:
        """Return the default."""
        return self.default_factory() if self.default_factory else self.default


class Url(str):
    """An http or https URL."""

    __slots__ = ()

    @property
    def scheme(self) -> str:
        return urlsplit(self).scheme

    @property
    def host(self) -> str:
        return urlsplit(self).hostname or ""


@dataclass(frozen=True, repr=False)
class Secret:
    """A text whose `repr` does not show it."""

    _text: str

    def get_secret_value(self) -> str:
        return self._text

    def __repr__(self) -> str:
        return "Secret('**********')"


# --- kinds ------------------------------------------------------------------------------------------------------


def text(default: str, description: str, *, unit: str = "TEXT") -> Any:
    """Declare a setting that can be any text."""
    return Setting(default, description, _text, unit=unit)


def name(  # noqa: PLR0913 - what a name is made of
    default: str,
    description: str,
    *,
    form: str,
    words: str,
    example: str,
    default_factory: Callable[[], str] | None = None,
) -> Any:
    """Declare a text that must match `form`, a regular expression; `words` say the same in an error."""

    def read(given: Any) -> str:
        if not re.fullmatch(form, stripped := _text(given).strip()):
            raise ValueError(f"must be {words}, such as {example}")
        return stripped

    return Setting(default, description, read, default_factory=default_factory)


def number(  # noqa: PLR0913 - what a number is made of
    default: int | None,
    description: str,
    *,
    least: int,
    most: int | None = None,
    unit: str = "NUMBER",
    example: int | None = None,
) -> Any:
    """Declare a whole number from `least` to `most`. Without a default it needs an `example` for errors."""
    bounds = f"of at least {least}" if most is None else f"from {least} to {most}"

    def read(given: Any) -> int:
        value = _number(float, given)
        if not least <= value <= (math.inf if most is None else most) or not float(value).is_integer():
            shown = default if example is None else example
            raise ValueError(f"must be a whole number {bounds}, such as {shown}")
        return int(value)

    return Setting(default, description, _or_none(read, default), unit=unit)


def port(default: int | None, description: str, *, example: int | None = None) -> Any:
    """Declare a TCP port; 0 takes a free one."""
    return number(default, description, least=0, most=65535, unit="PORT", example=example)


def count_of_bytes(default: int, description: str, *, least: int) -> Any:
    """Declare a number of bytes."""
    return number(default, description, least=least, unit="BYTES")


def rate(default: float, description: str, *, unit: str = "NUMBER") -> Any:
    """Declare a number greater than 0."""

    def read(given: Any) -> float:
        value = _number(float, given)
        if not 0 < value < math.inf:
            raise ValueError(f"must be a finite number greater than 0, such as {default:g}")
        return value

    return Setting(default, description, read, unit=unit)


def seconds(default: float, description: str) -> Any:
    """Declare a length of time in seconds."""
    return rate(default, description, unit="SECONDS")


def truth(default: bool, description: str) -> Any:
    """Declare a setting that is true or false."""

    def read(given: Any) -> bool:
        if str(given).strip().lower() not in TRUTHS:
            raise ValueError("must be true or false")
        return TRUTHS[str(given).strip().lower()]

    return Setting(default, description, read, is_flag=True)


def choice(default: str, description: str, *choices: str) -> Any:
    """Declare a setting that is one of `choices`."""

    def read(given: Any) -> str:
        if given not in choices:
            raise ValueError(f"must be one of {', '.join(choices)}")
        return str(given)

    return Setting(default, description, read, unit="|".join(choices), choices=choices)


def file(default: str | None, description: str) -> Any:
    """Declare the path of a file."""

    def read(given: Any) -> Path:
        if not str(given):
            raise ValueError("is empty: name a file, or remove the setting")
        return Path(given)

    return Setting(default and Path(default), description, _or_none(read, default), unit="FILE")


def url(default: str | None, description: str, *, example: str) -> Any:
    """Declare an http or https URL."""

    def read(given: Any) -> Url:
        try:
            return http_url(_text(given).strip())
        except ValueError:
            raise ValueError(f"must be an http or https URL, such as {example}") from None

    return Setting(default and http_url(default), description, _or_none(read, default), unit="URL")


def checked(default: str, description: str, *, check: Callable[[str], Any], variable: str = "") -> Any:
    """Declare a text for which `check` raises ValueError if it is wrong. `variable`: its own environment variable."""

    def read(given: Any) -> str:
        check(_text(given))
        return str(given)

    return Setting(default, description, read, variable=variable)


def secret(description: str) -> Any:
    """Declare a text that is never shown; the default is None."""

    def read(given: Any) -> Secret:
        return given if isinstance(given, Secret) else Secret(_text(given))

    return Setting(None, description, _or_none(read, None), is_secret=True)


def is_database(url: str) -> None:
    """Raise ValueError if a text names no database that the server can use."""
    if ":memory:" in url or not re.fullmatch(DATABASE_URL, url):
        raise ValueError(
            "must have the form sqlite+aiosqlite:///FILE, such as sqlite+aiosqlite:///series.db, or "
            "postgresql+asyncpg://USER:PASSWORD@HOST/DATABASE"
        )


def _or_none(read: Callable[[Any], T], default: object) -> Callable[[Any], T | None]:
    """Return a reader that also accepts None, if None is the default."""
    return lambda given: None if given is None and default is None else read(given)


def _number(kind: type[int] | type[float], given: Any) -> float:
    """Return a number; NaN if the value is not one, so that every comparison with bounds fails."""
    try:
        return kind(given)
    except (TypeError, ValueError, OverflowError):
        return math.nan


def _text(given: Any) -> str:
    if not isinstance(given, str):
        raise ValueError("must be text")  # noqa: TRY004 - every problem of a setting is a ValueError
    if re.search("[\ud800-\udfff]", given):  # Python reads bytes of the environment that are not UTF-8 as these
        raise ValueError("is not valid UTF-8")
    return given


def _ascii(host: str) -> str:
    """Return a host name in ASCII, encoded as httpx will encode it for name servers. Raises ValueError."""
    import idna  # the package that httpx uses

    return idna.encode(host).decode()


def http_url(given: str) -> Url:
    """Check an http or https URL; return it with at least the path `/`. Raises ValueError."""
    parts = urlsplit(given)
    host = parts.hostname or ""
    if ":" in host:
        ip_address(host)
    elif not re.fullmatch(r"[a-z0-9._~-]+", host if host.isascii() else _ascii(host)):
        raise ValueError(f"{given!r} names no host")
    if parts.scheme not in ("http", "https") or parts.port == 0 or re.search(r"[\x00-\x20\x7f<>\"{}|\\^`]", given):
        raise ValueError(f"{given!r} is no URL")
    return Url(parts._replace(path=parts.path or "/").geturl())
