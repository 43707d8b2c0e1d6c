"""A person's word about a series or study: taken by HTTP and by `python server.py declare` alike."""

import structlog

from api.answers import Declaration, Declare, StudyDeclaration
from db import Database
from models import SeriesRecord, is_uid
from storage.answers import StudyRecord
from storage.declarations import Declared
from storage.study_declarations import DeclaredStudy

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
    parts.append(_of_untold(done.untold))
    return "; ".join(filter(None, parts))


def _of_untold(gateways: list[str]) -> str | None:
    return f"{_these(gateways)} not told: too many orders wait there already" if gateways else None


def _these(gateways: list[str]) -> str:
    return f"{', '.join(gateways)} {'is' if len(gateways) == 1 else 'are'}"


def _of_row(said: Declare, done: Declared) -> str | None:
    if done.record is None:
        taken_back = "; the order to close it is taken back" if said.Declared == "incomplete" else ""
        return f"no report of it has come yet{taken_back}"
    if said.Declared == "incomplete":
        return _of_withdrawn(done.record, done.changed)
    if done.changed:
        return f"it is declared complete, with {done.record.NumInstances} images"
    if done.closing:
        return None
    return _of_standing(done.record)


def _of_withdrawn(record: SeriesRecord | StudyRecord, changed: bool) -> str:
    if changed:
        had = "it had no verdict and gets none" if record.Withdrawn == "part" else f"it is no longer {record.Withdrawn}"
        return f"{had}: it counts as incomplete until more images come, or a PACS has just what is here"
    return "nothing to do: it is declared incomplete already"


def _of_standing(record: SeriesRecord | StudyRecord) -> str:
    stronger = ", which is stronger" if record.Verdict == "verified" else " already"
    return f"nothing to do: it is {record.Verdict}{stronger}"


async def unknown(database: Database, said: Declare, series_instance_uid: str) -> str:
    """Say why there is nothing that could be declared, and how, if the UID is that of a study."""
    if is_uid(series_instance_uid) and await database.study(series_instance_uid) is not None:
        how = "declare it with --study, or by POST /studies/{StudyInstanceUID}/declaration"
        return f"{series_instance_uid} is no series, but a study: {how}"
    if said.Declared == "incomplete":
        return f"no series {series_instance_uid} is stored: there is no verdict to withdraw"
    return f"no series {series_instance_uid} is stored, and no gateway says that it has it open"


# --- of a study -------------------------------------------------------------------------------------------------


async def declare_study(database: Database, study_instance_uid: str, said: Declare, by: str) -> StudyDeclaration | None:
    """Take a person's word, whose text is never logged; None where the study is not stored."""
    done = await database.declare_study(study_instance_uid, said.Declared, by, said.Because)
    if done is None:
        return None
    log.info("study.declared", study_instance_uid=study_instance_uid, declared=said.Declared, changed=done.changed)
    words = _words_of_study(said, done)
    return StudyDeclaration(Did=words, Changed=done.changed, Closing=done.closing, Record=done.record)


def _words_of_study(said: Declare, done: DeclaredStudy) -> str:
    """Say what was done, and what is still to come."""
    record = done.record
    here = f"{record.NumSeries} series and {record.NumInstances} images"
    if said.Declared == "incomplete":
        what = _of_withdrawn(record, done.changed)
    elif record.Verdict == "declared" and done.changed:
        what = f"it is declared complete, with {here}"
    elif record.Verdict is None:
        what = "it is declared complete once what gateways have open of it is stored"
    else:
        what = _of_standing(record)
    closing = f"{_these(done.closing)} told to close its series" if done.closing else None
    return "; ".join(filter(None, (what, closing, _of_untold(done.untold))))


async def unknown_study(database: Database, study_instance_uid: str) -> str:
    """Say why there is nothing that could be declared, and how, if the UID is that of a series."""
    if is_uid(study_instance_uid) and await database.get(study_instance_uid) is not None:
        how = "declare it without --study, or by POST /series/{SeriesInstanceUID}/declaration"
        return f"{study_instance_uid} is no study, but a series: {how}"
    return f"no series of study {study_instance_uid} is stored"
