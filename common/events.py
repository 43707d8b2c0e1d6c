"""Every event that is logged or stands in a timeline: name, fields, meaning. Never patient data.

`make docs` writes the tables of docs/telemetry.md from here; a test holds this list against what the code emits.
"""

from typing import NamedTuple


class LogEvent(NamedTuple):
    """A line of the log: what it is called with, beside `timestamp`, `level` and `event`."""

    name: str
    level: str
    """Several, separated by spaces, if it depends on what happened."""
    fields: str
    """Separated by spaces."""
    meaning: str


class TimelineEvent(NamedTuple):
    """An entry of a series' timeline."""

    name: str
    details: str
    """Separated by spaces."""
    meaning: str


LOG_EVENTS = (
    LogEvent(
        "association.aborted",
        "warning",
        "association calling_ae_title peer_address reason",
        "We ended the association: a time-out passed, the drain's time was up, or it was idle and gave way to another.",
    ),
    LogEvent(
        "association.ended",
        "info",
        "association calling_ae_title peer_address instances seconds",
        "An association ended, however it did; `instances` of its images were answered 0x0000.",
    ),
    LogEvent(
        "association.rejected",
        "warning",
        "calling_ae_title as_sent called_ae_title peer_address result_source_reason reason near",
        "We rejected the association. `result_source_reason` are the numbers of PS3.8 table 9-21; `as_sent` and "
        "`called_ae_title` are escaped, as sent; `near` is the entry of `GATEWAY_ALLOWED_PEERS` that differs only in "
        "case or padding.",
    ),
    LogEvent(
        "association.violated",
        "warning",
        "association calling_ae_title as_sent peer_address reason",
        "The peer broke the protocol or a limit and was cut off; `as_sent` is its AE title, escaped.",
    ),
    LogEvent(
        "audit.unwritten",
        "error",
        "reason",
        "`SERVER_AUDIT_PATH` cannot be written: the request was answered but is missing from the audit log.",
    ),
    LogEvent(
        "backlog.locked",
        "warning",
        "reason",
        "on-complete: waits for another on-complete, or for a script that an earlier one left running.",
    ),
    LogEvent(
        "certificate.refused",
        "error",
        "reason",
        "SIGHUP: the certificate files cannot be used; the old certificate stays.",
    ),
    LogEvent("certificate.reloaded", "info", "", "SIGHUP: new handshakes use the new certificate."),
    LogEvent(
        "changes.followed",
        "info",
        "since",
        "on-complete: the server answers; changes after this number are worked on.",
    ),
    LogEvent("changes.unread", "warning", "reason", "on-complete: the server gave no changes; it is asked again."),
    LogEvent("conflict.resolved", "info", "series_instance_uid decision", "An operator settled a conflict."),
    LogEvent(
        "connection.refused",
        "warning",
        "peer_address reason",
        "A connection was closed before any association: its address is not allowed, or TLS failed.",
    ),
    LogEvent(
        "connection.unaccepted",
        "error",
        "reason",
        "The process has no file descriptor left; it goes on accepting as soon as there is one.",
    ),
    LogEvent("database.migrated", "info", "to seconds", "The schema is up to date."),
    LogEvent(
        "database.migrating",
        "info",
        "before to",
        "The schema is being brought up to date; this can take a while.",
    ),
    LogEvent("database.unavailable", "error", "reason", "The database did not answer; the request got 503."),
    LogEvent(
        "dead_letters.discarded",
        "info",
        "ids reason",
        "An operator, or an order of the server, gave up these dead letters.",
    ),
    LogEvent(
        "dead_letters.replayed",
        "info",
        "ids unmade",
        "An operator, or an order of the server, had these posted again; `unmade` stay dead, for no report can be "
        "made of them.",
    ),
    LogEvent(
        "gateway.dismissed",
        "info",
        "gateway",
        "Server: an operator says that a gateway is gone; its last heartbeat is forgotten.",
    ),
    LogEvent(
        "gateway.draining",
        "info",
        "drain_timeout_s",
        "SIGTERM or Ctrl-C: the gateway stops accepting and delivers what it has.",
    ),
    LogEvent("gateway.recovered", "info", "", "The gateway takes images again."),
    LogEvent(
        "gateway.saturated",
        "error",
        "reason",
        "The gateway takes no images: journal or disk is full or failing.",
    ),
    LogEvent("gateway.started", "info", "host port ae_title version", "The gateway listens."),
    LogEvent(
        "gateway.stopped",
        "info",
        "undelivered",
        "The gateway ended; so many reports wait in the journal for the next start.",
    ),
    LogEvent(
        "habits.unreadable",
        "warning",
        "source exception",
        "What was learnt about a source cannot be read; it is learnt anew.",
    ),
    LogEvent(
        "heartbeat.refused",
        "warning",
        "reason",
        "The server does not take this gateway's heartbeats; logged once.",
    ),
    LogEvent(
        "instance.refused",
        "warning error",
        "association calling_ae_title peer_address status reason sop_instance_uid",
        "An image was answered with `status`, not with 0x0000.",
    ),
    LogEvent("instances.refused", "error", "count reason", "The journal could not keep these images: 0xA700."),
    LogEvent("journal.opened", "info", "open_instances undelivered", "What an earlier run left in the journal."),
    LogEvent(
        "journal.set_aside",
        "error",
        "journal moved_to reason",
        "The journal was corrupt: it is renamed, not deleted, and a new one begins.",
    ),
    LogEvent(
        "journal.unreadable",
        "error",
        "table row reason",
        "A row of the journal holds nonsense: what cannot be read of that series is left out; `reason` is the kind "
        "and place of the error.",
    ),
    LogEvent("key.exposed", "warning", "host cure", "The key travels in clear text."),
    LogEvent("key.refused", "warning error", "reason", "The key's file cannot be used, or the key lacks a scope."),
    LogEvent("key.reloaded", "info", "", "The key was read from its file again."),
    LogEvent("metrics.served", "info", "host port", "The metrics port listens."),
    LogEvent(
        "operation.refused",
        "warning",
        "association calling_ae_title peer_address command_field",
        "A peer asked for something other than C-STORE and C-ECHO.",
    ),
    LogEvent(
        "order.delayed",
        "warning",
        "number kind reason",
        "An order could not be done now; the server gives it again.",
    ),
    LogEvent(
        "order.done",
        "info",
        "number kind problem",
        "The gateway did what the server ordered; `problem` says why there was nothing to do.",
    ),
    LogEvent(
        "order.ended",
        "info",
        "gateway number kind done",
        "Server: the gateway has said what became of the order.",
    ),
    LogEvent("order.failed", "error", "number kind exception", "A bug: the order failed, and the server is told so."),
    LogEvent(
        "order.given",
        "info",
        "gateway number kind",
        "Server: an operator wants something done about a dead letter.",
    ),
    LogEvent(
        "order.refused",
        "warning",
        "number reason",
        "This version does not know such an order; the server is told so.",
    ),
    LogEvent("process.failed", "critical", "exception", "A bug: the process ends."),
    LogEvent(
        "report.delayed",
        "warning",
        "series_instance_uid revision attempt reason retry_in_s trace_id",
        "The server could not take the report now; it is posted again.",
    ),
    LogEvent(
        "report.delivered",
        "info",
        "series_instance_uid revision instances stored attempt row_latency_s expected missing conflicts part trace_id",
        "The row is stored, `row_latency_s` after the last image. Where they apply: `missing` of `expected` images "
        "are not in the row, `conflicts` reports are kept beside it, `part`: the series stays open.",
    ),
    LogEvent(
        "report.failed",
        "error",
        "series_instance_uid revision attempt reason",
        "A bug met this report, by kind and place: it is posted again, and becomes a dead letter after three times "
        "in a row.",
    ),
    LogEvent("report.refused", "warning", "fields problems", "Server: 422; its side of `report.rejected`."),
    LogEvent(
        "report.rejected",
        "error",
        "series_instance_uid revision instances reason dead_letter trace_id",
        "The server refused the report for good: it is a dead letter.",
    ),
    LogEvent(
        "report.unmarked",
        "error",
        "series_instance_uid reason",
        "The report was delivered but the journal could not note it: it is posted again.",
    ),
    LogEvent(
        "request.audited",
        "info",
        "method route peer who status series_instance_uid via decision conflict gateway number kind dead_letter "
        "webhook",
        "The audit log: every request but probes, the page's files, log-outs, and heartbeats and metrics that were "
        "answered well. "
        "`via` is `page` if a session acted; what follows says what was done about what.",
    ),
    LogEvent(
        "script.delayed",
        "warning",
        "series_instance_uid revision change seconds reason",
        "on-complete: a script failed; it is run again.",
    ),
    LogEvent("script.ended", "info", "series_instance_uid revision change seconds", "on-complete: a script succeeded."),
    LogEvent(
        "script.rejected",
        "error",
        "series_instance_uid revision change reason",
        "on-complete: a script was given up, until `--replay`.",
    ),
    LogEvent(
        "series.conflicted",
        "warning",
        "series_instance_uid revision instances conflicts trace_id",
        "The report names another patient or study than the stored row.",
    ),
    LogEvent(
        "series.declared",
        "info",
        "series_instance_uid declared changed",
        "A person declared the series complete or incomplete; `changed`: its row changed at once.",
    ),
    LogEvent(
        "series.doubtful",
        "warning",
        "series_instance_uid revision instances source reasons trace_id",
        "Images of the series break the standard and were read as far as they can be; another reader may understand "
        "them otherwise.",
    ),
    LogEvent(
        "series.parted",
        "info",
        "series_instance_uid revision instances trace_id",
        "A part was reported: what is here of a series that has more images at its PACS. It stays open.",
    ),
    LogEvent(
        "series.reduced",
        "error",
        "series_instance_uid exception",
        "A bug: the report could not be made; the least one (identity, UIDs, `idle`) went in its place.",
    ),
    LogEvent(
        "series.reported",
        "info",
        "series_instance_uid revision instances verdict basis trace_id",
        "The series is closed; its report is in the journal.",
    ),
    LogEvent(
        "series.set_aside",
        "error",
        "series_instance_uid exception",
        "A bug: not even the least report could be made; the series is a dead letter, which `dead-letters replay` "
        "makes anew.",
    ),
    LogEvent(
        "series.stored",
        "info",
        "series_instance_uid instances revision verdict conflicts trace_id",
        "The server's row as it is now.",
    ),
    LogEvent("series.unreported", "error", "count reason", "The journal could not take these reports; tried again."),
    LogEvent("server.failed", "error", "exception", "A bug in a background task: the process ends."),
    LogEvent("server.refused", "error", "reason", "The server cannot start; `reason` names the setting and the cure."),
    LogEvent("server.started", "info", "database version", "The server's database is open."),
    LogEvent("server.stopped", "info", "", "The server ended."),
    LogEvent(
        "stream.dropped",
        "warning",
        "reason",
        "A reader of /changes/stream or of the page did not take what was sent; it asks again where it was.",
    ),
    LogEvent("trace.ended", "error", "reason", "`GATEWAY_TRACE_PATH` cannot be written any more."),
    LogEvent("warning.raised", "warning", "category place", "A library warned."),
    LogEvent(
        "webhook.delayed",
        "warning",
        "webhook change reason",
        "A webhook did not take a change; it is told again.",
    ),
    LogEvent(
        "webhook.ended",
        "error",
        "webhook change reason",
        "A webhook answered 410: it is told nothing more until it is replayed.",
    ),
    LogEvent(
        "webhook.interrupted",
        "warning",
        "webhook reason",
        "The database did not answer; the webhook goes on when it does.",
    ),
    LogEvent("webhook.rejected", "error", "webhook change reason", "A change was given up for a webhook."),
    LogEvent(
        "webhook.settled",
        "info",
        "webhook decision",
        "An operator had a webhook told again what was given up (`replay`), or gave that up for good (`discard`).",
    ),
    LogEvent("worker.ended", "error", "worker exit_code", "A worker process ended; it is started again."),
)

TIMELINE_EVENTS = (
    TimelineEvent(
        "association.joined",
        "Association CallingAETitle PeerAddress",
        "An association brought its first image of the series.",
    ),
    TimelineEvent("conflict.resolved", "Decision Digest", "An operator settled a conflict."),
    TimelineEvent(
        "images.arrived",
        "Arrivals",
        "How many images had come when, in seconds after the first: `0:1 0.31:12 1.2:50`; `At` is when the last came.",
    ),
    TimelineEvent(
        "images.counted",
        "Association Images Released",
        "How many images an association brought, and whether it had ended; `At` is when it did, or the time of the "
        "report.",
    ),
    TimelineEvent(
        "pacs.answered",
        "PACS Count Known Missing Fetched Problem",
        "A question to the PACS, and its answer.",
    ),
    TimelineEvent("report.stored", "Added Known Verdict", "Server: the report changed the row."),
    TimelineEvent(
        "series.declared",
        "Declared By Because Withdrawn",
        "Server: a person declared the series complete or incomplete; `Withdrawn` is the verdict that this took away.",
    ),
    TimelineEvent(
        "series.idle",
        "IdleTimeoutS Policy Phase LearntFrom",
        "The idle time-out passed; the grace period begins.",
    ),
    TimelineEvent("series.parted", "Images", "A part was reported: the PACS has more than is here."),
    TimelineEvent(
        "series.purged",
        "Images",
        "Server: the series was purged then, with so many images, and sent again later ([what "
        "grows](operations.md#what-grows-and-what-to-delete)).",
    ),
    TimelineEvent("series.reopened", "LateByS Verdict", "An image came after this verdict."),
    TimelineEvent("series.reported", "Verdict Images", "The series was closed with this verdict."),
    TimelineEvent(
        "timeline.shortened",
        "Dropped Until",
        "Server: so many events stood here, the last of them at that time.",
    ),
    TimelineEvent("verdict.contradicted", "Verdict IdlePolicy Added", "Server: images came after this verdict."),
)
