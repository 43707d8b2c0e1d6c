"""`python server.py sources`: list the sources of GET /sources, when each last sent, and which are unusually silent."""

import asyncio
from typing import Any

from api.answers import SourcePage, SourceSent
from api.cli.remote import Remote
from common.times import stamp

PAGE = 1000  # sources in one request, which is more than a site has


def listed(remote: Remote, query: dict[str, Any]) -> list[SourceSent]:
    """Return every source that matches. Raises Unreadable."""
    return asyncio.run(_listed(remote, query))


async def _listed(remote: Remote, query: dict[str, Any]) -> list[SourceSent]:
    async with remote.http:
        page = await remote.get("sources", SourcePage, limit=PAGE, **query)
        found = page.sources
        while page.next is not None:
            page = await remote.get("sources", SourcePage, limit=PAGE, after=page.next, **query)
            found += page.sources
        return found


def as_row(one: SourceSent) -> dict[str, Any]:
    """Return the most important columns of a source, for a table."""
    last = one.Days[0] if one.Days else None
    verdicts = (
        f"{v.Verdict} {v.Series}" + (f" ({v.Contradicted} contradicted)" * bool(v.Contradicted)) for v in one.Verdicts
    )
    return {
        "source": one.Source,
        "last image": stamp(one.LastReceivedAt),
        "hours missed": one.MissedHours,
        "unusual": one.Unusual,
        "last day": last and f"{last.Day}: {last.Series} series, {last.Images} images",
        "verdicts": ", ".join(verdicts) or None,
    }
