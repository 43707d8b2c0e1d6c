"""Record when images come (GATEWAY_TRACE_PATH), as JSON Lines for `make policies TRACES=folder`.

There is one line for each event, in order of time; docs/completion.md describes the fields. They hold UIDs, AE
titles and digests of descriptions, but no patient data.
"""

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from io import TextIOWrapper
from pathlib import Path

import structlog

from common.errors import SeriesGatewayError
from common.study_kinds import digest, is_stored
from models import Association, Instance

log = structlog.get_logger()


class CannotRecord(SeriesGatewayError):
    """The trace file cannot be opened."""


class Recorder:
    """Appends to one file. If a write fails, that is logged once, and only the recording ends."""

    def __init__(self, file: TextIOWrapper, clock: Callable[[], float]) -> None:
        self._file: TextIOWrapper | None = file
        self._clock = clock
        self._began = clock()

    @classmethod
    @contextmanager
    def open(cls, path: Path | None, clock: Callable[[], float]) -> Iterator["Recorder | None"]:
        """Open a file to append to, and create it if needed; yield None without a path. Raises CannotRecord."""
        if path is None:
            yield None
            return
        try:
            file = path.open("a", buffering=1)
        except OSError as error:
            raise CannotRecord(f"GATEWAY_TRACE_PATH={path} cannot be written: {error.strerror}.") from error
        recorder = cls(file, clock)
        try:
            yield recorder
        finally:
            recorder._try(file.close)

    def association(self, association: Association) -> None:
        """Record that an association was established, or has ended."""
        event = "opened" if association.released_at is None else "aborted" if association.aborted else "released"
        self._write(event, association.number, ae=association.calling_ae_title.strip())

    def image(self, instance: Instance) -> None:
        """Record that an image has come completely."""
        self._write(
            "image",
            instance.association.number if instance.association else 0,
            ae=instance.calling_ae_title.strip(),
            modality=instance.text("Modality") or "",
            station=instance.text("StationName") or "",
            series=instance.series_instance_uid,
            sop=instance.sop_instance_uid,
            bytes=instance.length,
            study=instance.study_instance_uid,
            study_description=digest(instance.text("StudyDescription")),
            description=digest(instance.text("SeriesDescription")),
            stored=is_stored(instance.text("StudyDate"), instance.received_at),
        )

    def _write(self, event: str, association: int, **fields: str | int) -> None:
        if self._file is None:
            return
        line = {"t": round(self._clock() - self._began, 6), "event": event, "association": association, **fields}
        self._try(partial(self._file.write, json.dumps(line) + "\n"))

    def _try(self, do: Callable[[], object]) -> None:
        try:
            do()
        except OSError as error:
            if self._file is not None:
                log.error("trace.ended", reason=error.strerror)
            self._file = None
