"""A change, as those who are told of it look at it: what it is about, and of which modalities that is."""

from models import Change


def uid_of(change: Change) -> str:
    """Return the UID of the series or study that has changed."""
    return change.StudyInstanceUID if change.Subject == "study" else change.SeriesInstanceUID or ""


def modalities_of(change: Change) -> list[str]:
    """Return the modality of a series, or those of a study's series."""
    if not change.Modality:
        return []
    return change.Modality.split("\\") if change.Subject == "study" else [change.Modality]
