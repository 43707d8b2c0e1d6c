"""The URL of a database, taken apart: whose it is, where it is, and whether a password stands in it."""

from sqlalchemy.engine import make_url
from sqlalchemy.exc import ArgumentError


def has_password(url: str) -> bool:
    return bool(make_url(url).password)


def host_of(url: str) -> str:
    """Return the host of PostgreSQL; this machine if none is named."""
    return make_url(url).host or "localhost"


def user_without_password(url: str) -> str | None:
    """Return the user in a PostgreSQL URL without a password, maybe empty; None of any other URL. Raises ValueError."""
    try:
        parts = make_url(url)
    except ArgumentError as error:
        raise ValueError(str(error)) from error
    if parts.get_backend_name() != "postgresql" or parts.password is not None:
        return None
    return parts.username or ""


def with_password(url: str, password: str) -> str:
    return make_url(url).set(password=password).render_as_string(hide_password=False)
