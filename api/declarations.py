"""A person's word about a series: taken by HTTP and by `python server.py declare` alike."""

import structlog

from api.answers import Declaration, Declare
from db import Database
from storage.declarations import Declared

log = structlog.get_logger()


async def declare(database: Database, series_instance_uid: str, said: Declare, by: str) -> Declaration | None:
    """Take a person's word, whose text is never logged; None where nobody knows the series."""
    done = await database.declare(series_instance_uid, said.Declared, by, said.Because)
    if done is None:
        return None
    log.info("series.declared", series_instance_uid=series_instance_uid, declared=said.Declared, changed=done.changed)
    return Declaration(Did=_words(said, done), Changed=done.changed, Closing=done.closing, Record=done.record)


def _words(said: Declare, done: Declared) -> str:
    """Say what was done, and what is still to come."""
    parts = [_of_row(said, done)]
    if done.closing:
        parts.append(f"{_these(done.closing)} told to close it, and its row follows with the report")
    if done.told:
        parts.append(f"{_these(done.told)} told, too, if anything of it is open there")
    if done.untold:
        parts.append(f"{_these(done.untold)} not told: too many orders wait there already")
    return "; ".join(filter(None, parts))


def _these(gateways: list[str]) -> str:
    return f"{', '.join(gateways)} {'is' if len(gateways) == 1 else 'are'}"


def _of_row(said: Declare, done: Declared) -> str | None:
    if done.record is None:
        taken_back = "; the order to close it is taken back" if said.Declared == "incomplete" else ""
        return f"no report of it has come yet{taken_back}"
    if said.Declared == "incomplete":
        if done.changed:
            return f"its verdict ({done.record.Withdrawn}) is withdrawn until images come or it is verified"
        return "nothing to do: it is declared incomplete already"
    if done.changed:
        return f"it is declared complete, with {done.record.NumInstances} images"
    if done.closing:
        return None
    stronger = ", which is stronger" if done.record.Verdict == "verified" else " already"
    return f"nothing to do: it is {done.record.Verdict}{stronger}"


def unknown(said: Declare, series_instance_uid: str) -> str:
    """Say why there is nothing that could be declared."""
    if said.Declared == "incomplete":
        return f"no series {series_instance_uid} is stored: there is no verdict to withdraw"
    return f"no series {series_instance_uid} is stored, and no gateway says that it has it open"
