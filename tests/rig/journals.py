"""A journal without a disk, that fails and stalls as a test wants it: for tests of what stands before and behind it."""

import asyncio
from collections.abc import Mapping, Sequence
from itertools import count

from gateway.journal import JournalUnavailable
from gateway.journal_rows import Waiting
from models import Instance, SeriesKey, SeriesReport


class MemoryJournal:
    """Has the interface of `gateway.journal.Journal` that the gateway's way of an image uses.

    `unavailable` is why every write fails, None while none does; `commit_s` is how long a commit takes.
    """

    def __init__(self) -> None:
        self.unavailable: str | None = None
        self.commit_s = 0.0
        self.commits: list[list[str]] = []
        """The SOP Instance UIDs of each."""
        self.open: set[tuple[SeriesKey, str]] = set()
        """Those that no report has taken."""
        self.reports: list[SeriesReport] = []
        self.learnt: list[set[str]] = []
        """With each filing, the AE titles about which the idle policy had learnt something."""
        self.set_aside_uids: list[str] = []
        self.reason: str | None = None
        """Why no image is taken."""
        self.failing: str | None = None
        self.probes = 0
        self._ids = count(1)

    async def keep(self, instances: Sequence[Instance]) -> None:
        await asyncio.sleep(self.commit_s)
        self._write()
        self.commits.append([instance.sop_instance_uid for instance in instances])
        self.open |= {(instance.key, instance.sop_instance_uid) for instance in instances}

    async def file_reports(
        self,
        reports: Sequence[SeriesReport],
        learnt: Mapping[tuple[str, str, str], str | None],
        traceparents: Sequence[str | None],
        trust: Mapping[str, int],
    ) -> list[Waiting]:
        self._write()
        self.reports += reports
        self.learnt.append({title for title, _, _ in learnt})
        for report in reports:
            self.open -= {(report.key, uid) for uid in report.SOPInstanceUIDs or []}
        return [
            Waiting(next(self._ids), one.key, one.Revision, one.NumInstances, 0, 0.0, 0.0, traceparent)
            for one, traceparent in zip(reports, traceparents, strict=True)
        ]

    async def set_aside(self, key: SeriesKey, sop_instance_uids: Sequence[str], revision: int, reason: str) -> None:
        self._write()
        self.set_aside_uids += sop_instance_uids
        self.open -= {(key, uid) for uid in sop_instance_uids}

    async def probe(self) -> None:
        self.probes += 1
        self._write()
        self.failing = None

    def saturated(self) -> str | None:
        return self.reason or self.failing

    def _write(self) -> None:
        if self.unavailable is not None:
            self.failing = self.unavailable
            raise JournalUnavailable(self.unavailable)
