"""Count, by study, what is here and not at the server yet: `HeldStudies`. No I/O, no clock."""

import asyncio

from models import MAX_OPEN_STUDIES, is_uid


class HeldStudies:
    """The studies of which something is here that the server does not know yet. The heartbeat names them.

    An image is held from before its commit until the server has acknowledged its report, in four hands:

    1. `Gateway._commit`, while the journal commits it;
    2. the SeriesCollector, while its series is open;
    3. `Gateway.collect` and `_file`, while its report is not in the journal yet;
    4. the SeriesDispatcher, while its report waits for the server. A dead letter is held no more.

    Each takes hold before the one before it lets go, and the event loop runs nothing in between. So no heartbeat leaves
    out a study on its way from hand to hand. After a restart, hands 2 and 4 hold everything in the journal before the
    first heartbeat (`client.restore`).
    """

    def __init__(self) -> None:
        self._holds: dict[str, int] = {}
        self.changed = asyncio.Event()
        """Set when a study came or went; whoever waits for it clears it."""

    def take(self, study_instance_uid: str) -> None:
        """Hold a study once more."""
        before = self._holds.get(study_instance_uid, 0)
        self._holds[study_instance_uid] = before + 1
        if not before:
            self.changed.set()

    def let_go(self, study_instance_uid: str) -> None:
        """Hold a study once less."""
        left = self._holds[study_instance_uid] - 1
        if left:
            self._holds[study_instance_uid] = left
            return
        del self._holds[study_instance_uid]
        self.changed.set()

    def has(self, study_instance_uid: str) -> bool:
        """Tell if anything of a study is held."""
        return study_instance_uid in self._holds

    def listed(self) -> list[str] | None:
        """Return the studies, sorted; None if they are more than a heartbeat names, or one has no UID that it takes."""
        if len(self._holds) > MAX_OPEN_STUDIES or not all(map(is_uid, self._holds)):
            return None
        return sorted(self._holds)
