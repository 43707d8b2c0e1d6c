"""The operations that a journal's owner does for operators: a running gateway, or a command if none runs."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import structlog

from common.control import Operation
from gateway.journal import Journal
from gateway.journal_rows import Waiting

log = structlog.get_logger()


def dead_letter_operations(journal: Journal, submit: Callable[[Waiting], None]) -> Mapping[str, Operation]:
    """Return the operations that replay or discard dead letters. `submit` takes reports to be posted again."""

    async def replay(ids: Sequence[int] | None) -> dict[str, Any]:
        dead = await journal.dead(ids)
        waiting = await journal.replay_dead(ids)
        for one in waiting:
            submit(one)
        replayed = [one.id for one in waiting]
        unmade = sorted({*dead} - {*replayed})
        log.info("dead_letters.replayed", ids=replayed, unmade=unmade)
        return {"replayed": replayed} | ({"unmade": unmade} if unmade else {})

    async def discard(ids: Sequence[int] | None, reason: str) -> dict[str, Any]:
        discarded = await journal.discard_dead(ids, reason)
        log.info("dead_letters.discarded", ids=discarded, reason=reason)
        return {"discarded": discarded}

    return {"replay": replay, "discard": discard}
