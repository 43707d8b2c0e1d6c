"""`python client.py sources`: list who has sent to this gateway, when last, and how long it waits for more images."""

import json
import time
from pathlib import Path
from typing import Any

from common.settings import GatewaySettings
from gateway import journal_reader
from gateway.idle import Adaptive, Source, source_of

COLUMNS: dict[str, Any] = {
    "source": None,
    "last_image_at": None,
    "silent_for_s": None,
    "open_images": 0,
    "series": 0,
    "images": 0,
    "learnt_from": 0,
    "wait_s": {},
}


def listed(workers: list[GatewaySettings]) -> list[dict[str, Any]]:
    """Return a row for each source of all workers, in order of name. Raises JournalUnusable."""
    found: dict[str, dict[str, Any]] = {}
    for settings in workers:
        for name, seen in (*_reported(settings.journal_path), *_open(settings.journal_path), *_learnt(settings)):
            _add(found.setdefault(name, {**COLUMNS, "source": name}), seen)
    now = time.time()
    for row in found.values():
        if row["last_image_at"] is not None:
            row["silent_for_s"] = round(max(0.0, now - row["last_image_at"]), 1)
    return [found[name] for name in sorted(found)]


def as_text(row: dict[str, Any]) -> dict[str, Any]:
    """Return a row for a table, with its waits as text."""
    return row | {"wait_s": ", ".join(f"{phase} {seconds:g}" for phase, seconds in row["wait_s"].items()) or None}


def _add(row: dict[str, Any], seen: dict[str, Any]) -> None:
    """Add what one worker knows of a source. The waits are those of the worker that has learnt from most series."""
    if (at := seen.get("last_image_at")) is not None:
        row["last_image_at"] = max(at, row["last_image_at"] or 0.0)
    for name in ("open_images", "series", "images"):
        row[name] += seen.get(name, 0)
    if seen.get("learnt_from", 0) > row["learnt_from"]:
        row |= {"learnt_from": seen["learnt_from"], "wait_s": seen["wait_s"]}


def _reported(path: Path) -> list[tuple[str, dict[str, Any]]]:
    return [(str(row.pop("name")), row) for row in journal_reader.sources(path)]


def _open(path: Path) -> list[tuple[str, dict[str, Any]]]:
    """Return the sources of open series."""
    rows = journal_reader.open_series(path)
    named = [
        (source_of(str(row["calling_ae_title"]), _text(row["modality"]), _text(row["station"])), row) for row in rows
    ]
    return [
        (source.name, {"last_image_at": row["last_image_at"], "open_images": row["images"]}) for source, row in named
    ]


def _text(values: str | None) -> str:
    found = json.loads(values or "[]")
    return "\\".join(map(str, found)) if isinstance(found, list) else ""


def _learnt(settings: GatewaySettings) -> list[tuple[str, dict[str, Any]]]:
    """Return what was learnt about real sources, without the groups that stand for any of an AE title or modality."""
    policy = Adaptive(settings.idle_timeout_s, settings.idle_max_s)
    known: list[Source] = []
    for row in journal_reader.learnt(settings.journal_path) if settings.idle_policy == "adaptive" else ():
        source = Source(str(row["calling_ae_title"]), str(row["modality"]), str(row["station"]))
        try:
            policy.load(source, row["content"])
        except Exception:  # noqa: S112 - damaged, or of a newer version: the gateway learns it again, and logs that
            continue
        known.append(source)
    with_station = {source[:2] for source in known if source.station}
    own = [s for s in known if s.calling_ae_title and s.modality and (s.station or s[:2] not in with_station)]
    return [
        (
            s.name,
            {"learnt_from": policy.known(s), "wait_s": {p.value: round(w, 3) for p, w in policy.learnt_s(s).items()}},
        )
        for s in own
    ]
