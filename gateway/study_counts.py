"""Decide which PACS is asked about a series' study: `StudyManners`. No I/O, no clock.

A PACS need not count a study: both counts are optional keys (PS3.4 table C.6-5). One that refuses the question, has no
counts or answers nonsense costs its series nothing, and is asked in vain only now and then.
"""

from collections import defaultdict

REFUSALS = 3  # answers without counts in a row, after which a PACS is left alone, …
PAUSE_S = 600.0  # … for so long; then one more question shows if that has changed


class StudyManners:
    """Counts, by AE title, how often in a row a PACS gave no counts of a study. Times are loop time."""

    def __init__(self) -> None:
        self._refusals: dict[str, int] = defaultdict(int)
        self._asked_at: dict[str, float] = {}

    def may_ask(self, title: str, now: float) -> bool:
        """Tell if a PACS is asked about studies now."""
        return self._refusals[title] < REFUSALS or now >= self._asked_at[title] + PAUSE_S

    def note(self, title: str, now: float, *, counted: bool) -> bool:
        """Note if a PACS gave the counts of a study; return true if it is left alone from now on."""
        self._asked_at[title] = now
        self._refusals[title] = 0 if counted else min(self._refusals[title] + 1, REFUSALS)
        return self._refusals[title] == REFUSALS
