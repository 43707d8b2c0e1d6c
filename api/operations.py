"""What operators ask for by `python server.py`, done by the server or by a command."""

from collections.abc import Mapping
from dataclasses import asdict
from datetime import UTC, datetime, timedelta
from functools import partial
from typing import Any

from api import declarations
from api.answers import Declare
from common.control import Operation
from common.logs import configure_logging
from common.settings import ServerSettings
from common.times import stamp
from db import Database
from models import is_uid
from storage.heartbeats import StillHeard
from storage.key_reader import shown

HEARD_OF = timedelta(days=1)


def operations(database: Database) -> Mapping[str, Operation]:
    """Return what an operator may ask for, by name; answers are JSON."""
    return {
        "create_key": partial(_create_key, database),
        "list_keys": partial(_list_keys, database),
        "revoke_key": partial(_revoke_key, database),
        "posters": partial(_posters, database),
        "declare": partial(_declare, database),
        "declare_study": partial(_declare_study, database),
        "add_webhook": partial(_add_webhook, database),
        "list_webhooks": partial(_list_webhooks, database),
        "remove_webhook": partial(_remove_webhook, database),
        "rotate_webhook": partial(_rotate_webhook, database),
        "replay_webhook": partial(_replay_webhook, database),
        "discard_webhook": partial(_discard_webhook, database),
        "list_gateways": partial(_list_gateways, database),
        "dismiss_gateway": partial(_dismiss_gateway, database),
        "count_old": partial(_count_old, database),
        "purge_series": partial(_purge_series, database),
        "purge_changes": partial(_purge_changes, database),
    }


async def done_here(settings: ServerSettings, operation: str, **arguments: Any) -> dict[str, Any]:
    """Do an operation on a database that no server of SQLite has open."""
    configure_logging()
    async with Database.open(settings) as database:
        return await operations(database)[operation](**arguments)


async def _create_key(database: Database, name: str, scopes: list[str], expires_at: str | None) -> dict[str, Any]:
    ends_at = datetime.fromisoformat(expires_at) if expires_at else None
    key, secret = await database.keys.create(name, scopes, ends_at)
    return shown(**asdict(key)) | {"key": secret}


async def _list_keys(database: Database) -> dict[str, Any]:
    return {"rows": [shown(**asdict(key)) for key in await database.keys.all()]}


async def _revoke_key(database: Database, id: str) -> dict[str, Any]:
    return {"done": await database.keys.revoke(id)}


async def _posters(database: Database) -> dict[str, Any]:
    """Return who may post reports: whether there ever was a key, whose may, and which gateways spoke within a day."""
    made, since = await database.keys.all(), datetime.now(UTC) - HEARD_OF
    may_post = [key.name for key in made if key.is_valid and key.may("series:write")]
    heard = {name: at for name, at in (await database.latest.heard()).items() if at > since}
    return {"made": bool(made), "may_post": may_post, "heard": sorted(heard, key=heard.__getitem__, reverse=True)}


async def _declare(
    database: Database, series_instance_uid: str, declared: str, because: str, by: str
) -> dict[str, Any]:
    said = Declare.model_validate({"Declared": declared, "Because": because})
    known = is_uid(series_instance_uid)
    done = await declarations.declare(database, series_instance_uid, said, by) if known else None
    if done is None:
        return {"unknown": await declarations.unknown(database, said, series_instance_uid)}
    row = done.Record
    verdict = None if row is None else row.Verdict or f"none ({row.Withdrawn} was withdrawn)"
    return {
        "series": series_instance_uid,
        "did": done.Did,
        "verdict": verdict,
        "images": row and row.NumInstances,
        "closing": done.Closing,
    }


async def _declare_study(
    database: Database, study_instance_uid: str, declared: str, because: str, by: str
) -> dict[str, Any]:
    said = Declare.model_validate({"Declared": declared, "Because": because})
    known = is_uid(study_instance_uid)
    done = await declarations.declare_study(database, study_instance_uid, said, by) if known else None
    if done is None:
        return {"unknown": await declarations.unknown_study(database, study_instance_uid)}
    row = done.Record
    return {
        "study": study_instance_uid,
        "did": done.Did,
        "verdict": row.Verdict or (f"none ({row.Withdrawn} was withdrawn)" if row.Withdrawn else None),
        "series": row.NumSeries,
        "images": row.NumInstances,
        "closing": done.Closing,
    }


async def _add_webhook(
    database: Database,
    url: str,
    from_start: bool,
    link_local: bool = False,
    filters: dict[str, list[str]] | None = None,
) -> dict[str, Any]:
    position = 0 if from_start else await database.last_change()
    id, secret = await database.webhooks.add(url, position, filters or {}, link_local=link_local)
    return {"id": id, "url": url, "filters": filters or None, "position": position, "secret": secret}


async def _list_webhooks(database: Database) -> dict[str, Any]:
    rows = await database.webhooks.all()
    last = await database.last_change()
    rows = [row | {"Filters": row["Filters"] or None} for row in rows]
    return {"rows": [{k.lower(): v for k, v in row.items()} | {"behind": last - row["Position"]} for row in rows]}


async def _remove_webhook(database: Database, id: int) -> dict[str, Any]:
    return {"done": await database.webhooks.remove(id)}


async def _rotate_webhook(database: Database, id: int, keep_old_s: float) -> dict[str, Any]:
    secret, until = await database.webhooks.rotate(id, timedelta(seconds=keep_old_s))
    return {"id": id, "secret": secret, "old_until": until and stamp(until)}


async def _replay_webhook(database: Database, id: int) -> dict[str, Any]:
    """Tell again what was given up, and all that came after the first of it."""
    return {"from": await database.webhooks.replay(id)}


async def _discard_webhook(database: Database, id: int) -> dict[str, Any]:
    return {"discarded": await database.webhooks.discard(id)}


async def _list_gateways(database: Database) -> dict[str, Any]:
    refused = await database.heartbeats.refused(datetime.now(UTC) - HEARD_OF)
    rows = [
        {
            "gateway": one.State.GatewayID,
            "seen_at": stamp(one.SeenAt),
            "silent_s": one.SilentS,
            "stopped": one.State.Stopped,
            "refused": refused.get(one.State.GatewayID),
        }
        for one in await database.gateways()
    ]
    return {"rows": rows}


async def _dismiss_gateway(database: Database, name: str) -> dict[str, Any]:
    try:
        return {"done": await database.heartbeats.dismiss(name, datetime.now(UTC)), "problem": None}
    except StillHeard as error:
        return {"done": False, "problem": str(error)}


async def _count_old(database: Database, before: str) -> dict[str, Any]:
    return {"series": await database.purger.old(datetime.fromisoformat(before))}


async def _purge_series(database: Database, before: str, after: list[str] | None, dry: bool) -> dict[str, Any]:
    """Remove one batch; `after` in the answer is where the next one begins."""
    if not dry:
        await database.last_change()  # which numbers them: what has no number keeps its series
    place = after and (datetime.fromisoformat(after[0]), after[1])
    batch = asdict(await database.purger.series(datetime.fromisoformat(before), place or None, dry=dry))
    at, uid = batch["after"] or (None, None)
    return batch | {"after": at and [at.isoformat(), uid]}


async def _purge_changes(database: Database, before: str, after: int, dry: bool) -> dict[str, Any]:
    return asdict(await database.purger.changes(datetime.fromisoformat(before), after, dry=dry))
