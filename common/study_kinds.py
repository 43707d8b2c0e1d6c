"""Sorts series into kinds and studies into groups, for what is learnt of the silences of studies. Names no patient."""

import re
from datetime import datetime, timedelta
from hashlib import blake2b

NUMBER = re.compile(r"(?<![^\W_])\d+")  # not behind a letter or a digit
STORED = "stored"
"""The group of studies that were made on an earlier day than they came."""
STORED_AFTER = timedelta(days=2)  # a StudyDate this long ago is an earlier day in every time zone


def kind_of(modality: str | None, description: str | None) -> str:
    """Return the kind of a series. Numbers that stand alone (a thickness) tell no kinds apart; T1 and T2 do."""
    return f"{(modality or '')[:4]}{digest(description)}"


def group_of(description: str | None, study_date: str | None, received_at: datetime) -> str:
    """Return the group of a study: `STORED`, or one for each StudyDescription."""
    return STORED if is_stored(study_date, received_at) else digest(description)


def is_stored(study_date: str | None, received_at: datetime) -> bool:
    """Return whether a study was made on an earlier day than it came."""
    try:
        made = datetime.strptime(study_date or "", "%Y%m%d").replace(tzinfo=received_at.tzinfo)
    except ValueError:
        return False
    return received_at - made > STORED_AFTER


def digest(text: str | None) -> str:
    """Return seven characters for a text: people write names into descriptions, too."""
    letters = "".join(filter(str.isalnum, NUMBER.sub("", (text or "").casefold())))
    return f"d{blake2b(letters.encode('utf-8', 'replace'), digest_size=3).hexdigest()}" if letters else ""
