"""Every event of the log and of series' timelines: name, fields, meaning. They never hold patient data.

`make docs` writes the tables of docs/telemetry.md from here. A test compares this list with what the code emits.
"""

from typing import NamedTuple


class LogEvent(NamedTuple):
    """A line of the log. Every line also has the fields `timestamp`, `level` and `event`."""

    name: str
    level: str
    """The level; several, separated by spaces, if it depends on what happened."""
    fields: str
    """The names of its fields, separated by spaces."""
    meaning: str


class TimelineEvent(NamedTuple):
    """An entry of a series' timeline."""

    name: str
    details: str
    """The names of its details, separated by spaces."""
    meaning: str


LOG_EVENTS = (
    LogEvent(
        "association.aborted",
        "warning",
        "association calling_ae_title peer_address reason",
        "The gateway ended the association: a time-out passed, the drain took too long, or it was idle and its place "
        "was needed for another.",
    ),
    LogEvent(
        "association.ended",
        "info",
        "association calling_ae_title peer_address instances seconds",
        "An association ended, for whatever reason; `instances` of its images were answered with 0x0000.",
    ),
    LogEvent(
        "association.rejected",
        "warning",
        "calling_ae_title as_sent called_ae_title peer_address result_source_reason reason near",
        "The gateway rejected the association. `result_source_reason` holds the numbers of PS3.8 table 9-21; `as_sent` "
        "and `called_ae_title` are the AE titles as they were sent, escaped; `near` is an entry of "
        "`GATEWAY_ALLOWED_PEERS` that differs only in case or padding.",
    ),
    LogEvent(
        "association.violated",
        "warning",
        "association calling_ae_title as_sent peer_address reason",
        "The peer violated the protocol or exceeded a limit, and was disconnected; `as_sent` is its AE title, escaped.",
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
        "on-complete: it waits for another on-complete, or for a script that an earlier one left running.",
    ),
    LogEvent(
        "certificate.refused",
        "error",
        "reason",
        "SIGHUP: the certificate files cannot be used; the old certificate stays in use.",
    ),
    LogEvent("certificate.reloaded", "info", "", "SIGHUP: new handshakes use the new certificate."),
    LogEvent(
        "changes.followed",
        "info",
        "since",
        "on-complete: the server answers; changes after this number are handled.",
    ),
    LogEvent(
        "changes.unread", "warning", "reason", "on-complete: the changes could not be read; the server is asked again."
    ),
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
        "The process has no file descriptor left; it accepts connections again as soon as one is free.",
    ),
    LogEvent("database.migrated", "info", "to seconds", "The schema is up to date."),
    LogEvent(
        "database.migrating",
        "info",
        "before to",
        "The schema is being brought up to date; this can take a while.",
    ),
    LogEvent(
        "database.not_durable",
        "warning",
        "off cure",
        "At the server's start: these settings of PostgreSQL are off for its sessions, so a power cut of the "
        "database's machine loses reports that gateways have forgotten. `cure` is what to run there; ALTER ROLE or "
        "ALTER DATABASE may say otherwise.",
    ),
    LogEvent(
        "database.unavailable", "error", "reason", "The database did not answer; the request was answered with 503."
    ),
    LogEvent(
        "dead_letters.discarded",
        "info",
        "ids reason",
        "An operator, or an order from the server, gave up these dead letters.",
    ),
    LogEvent(
        "dead_letters.replayed",
        "info",
        "ids unmade",
        "An operator, or an order from the server, had these dead letters posted again. Those in `unmade` stay dead "
        "letters, since no report can be made from them.",
    ),
    LogEvent(
        "gateway.dismissed",
        "info",
        "gateway",
        "Server: an operator said that a gateway is gone; its last heartbeat is deleted.",
    ),
    LogEvent(
        "gateway.draining",
        "info",
        "drain_timeout_s",
        "SIGTERM or Ctrl-C: the gateway accepts no more associations and delivers what it has.",
    ),
    LogEvent("gateway.recovered", "info", "", "The gateway accepts images again."),
    LogEvent(
        "gateway.saturated",
        "error",
        "reason",
        "The gateway refuses images, because the journal or the disk is full or failing.",
    ),
    LogEvent("gateway.started", "info", "host port ae_title version", "The gateway listens."),
    LogEvent(
        "gateway.stopped",
        "info",
        "undelivered",
        "The gateway ended; `undelivered` reports wait in the journal for the next start.",
    ),
    LogEvent(
        "gateway.undrained",
        "error",
        "journal series reason",
        "The gateway ended while its journal could not be written: so many series stay open in it, and are reported "
        "after the next start. Exit status 3.",
    ),
    LogEvent(
        "habits.unreadable",
        "warning",
        "source exception",
        "What was learnt about a source cannot be read; it is learnt again.",
    ),
    LogEvent(
        "heartbeat.refused",
        "warning",
        "reason",
        "The server refuses this gateway's heartbeats; logged once.",
    ),
    LogEvent(
        "instance.refused",
        "warning error",
        "association calling_ae_title peer_address status reason sop_instance_uid",
        "An image was refused: it was answered with `status`, not with 0x0000.",
    ),
    LogEvent(
        "instances.refused",
        "error",
        "count reason",
        "The journal could not store these images; they were answered with 0xA700.",
    ),
    LogEvent(
        "journal.opened",
        "info",
        "open_instances undelivered",
        "The journal is open; the fields count what an earlier run left in it.",
    ),
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
        "A row of the journal cannot be read; that part of its series is left out. `reason` is the kind and place of "
        "the error.",
    ),
    LogEvent("key.exposed", "warning", "host cure", "The key is sent in clear text."),
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
        "An order could not be carried out now; the server gives it again.",
    ),
    LogEvent(
        "order.done",
        "info",
        "number kind problem",
        "The gateway carried out an order of the server; `problem` says why there was nothing to do, if so.",
    ),
    LogEvent(
        "order.ended",
        "info",
        "gateway number kind done",
        "Server: the gateway has reported the outcome of the order.",
    ),
    LogEvent(
        "order.failed", "error", "number kind exception", "A bug: the order failed; the server is told that it did."
    ),
    LogEvent(
        "order.given",
        "info",
        "gateway number kind",
        "Server: an operator gave an order about a dead letter; the gateway gets it with its next heartbeat.",
    ),
    LogEvent(
        "order.refused",
        "warning",
        "number reason",
        "This version of the gateway does not know the order; the server is told that.",
    ),
    LogEvent(
        "pacs.uncounted",
        "info",
        "pacs reason again_in_s",
        "A PACS gave no counts of a study, three times in a row; it is asked only about series for a while.",
    ),
    LogEvent("process.failed", "critical", "exception", "A bug: the process ends."),
    LogEvent(
        "report.delayed",
        "warning",
        "series_instance_uid revision attempt reason retry_in_s trace_id",
        "The report could not be delivered now; it is posted again.",
    ),
    LogEvent(
        "report.delivered",
        "info",
        "series_instance_uid revision instances stored attempt row_latency_s expected missing conflicts part trace_id",
        "The server stored the row, `row_latency_s` after the last image. If present: `missing` of `expected` images "
        "are not in the row; `conflicts` reports are kept beside it; `part`: the series stays open.",
    ),
    LogEvent(
        "report.failed",
        "error",
        "series_instance_uid revision attempt reason",
        "A bug prevented this report from being posted; `reason` is its kind and place. The report is tried again, and "
        "becomes a dead letter after three failures in a row.",
    ),
    LogEvent(
        "report.refused",
        "warning",
        "fields problems",
        "Server: a report was answered with 422; the gateway logs `report.rejected`.",
    ),
    LogEvent(
        "report.rejected",
        "error",
        "series_instance_uid revision instances reason dead_letter trace_id",
        "The server refused the report for good; it is now a dead letter.",
    ),
    LogEvent(
        "report.unmarked",
        "error",
        "series_instance_uid reason",
        "The report was delivered, but the journal could not record that; it is posted again.",
    ),
    LogEvent(
        "request.audited",
        "info",
        "method route peer who status series_instance_uid study_instance_uid via decision conflict gateway number kind "
        "dead_letter webhook",
        "The audit log: every request except probes, the page's files, log-outs, and successful heartbeats and "
        "metrics. `via` is `page` if a browser's session acted; the fields after it say what was done.",
    ),
    LogEvent(
        "script.delayed",
        "warning",
        "series_instance_uid study_instance_uid revision change seconds reason",
        "on-complete: a script failed; it is run again.",
    ),
    LogEvent(
        "script.ended",
        "info",
        "series_instance_uid study_instance_uid revision change seconds",
        "on-complete: a script succeeded.",
    ),
    LogEvent(
        "script.rejected",
        "error",
        "series_instance_uid study_instance_uid revision change reason",
        "on-complete: a script was given up, until `--replay`.",
    ),
    LogEvent(
        "series.conflicted",
        "warning",
        "series_instance_uid revision instances conflicts trace_id",
        "The report names another patient or study than the stored row does.",
    ),
    LogEvent(
        "series.declared",
        "info",
        "series_instance_uid declared changed",
        "A person declared the series complete or incomplete; `changed` says if its row changed at once.",
    ),
    LogEvent(
        "series.doubtful",
        "warning",
        "series_instance_uid revision instances source reasons trace_id",
        "Images of the series violate the standard and were read as far as possible; another reader may understand "
        "them differently.",
    ),
    LogEvent(
        "series.parted",
        "info",
        "series_instance_uid revision instances trace_id",
        "A part was reported: the images here, of a series of which the PACS has more. It stays open.",
    ),
    LogEvent(
        "series.reduced",
        "error",
        "series_instance_uid exception",
        "A bug: the report could not be made; a minimal one (identity, UIDs, verdict `idle`) was made instead.",
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
        "A bug: not even the minimal report could be made; the series is now a dead letter, and `dead-letters replay` "
        "tries again.",
    ),
    LogEvent(
        "series.stored",
        "info",
        "series_instance_uid instances revision verdict conflicts trace_id",
        "Server: a report was stored; the fields show the row as it is now.",
    ),
    LogEvent(
        "series.unreported", "error", "count reason", "The journal could not store these reports; it is tried again."
    ),
    LogEvent("server.failed", "error", "exception", "A bug in a background task: the process ends."),
    LogEvent(
        "server.refused", "error", "reason", "The server cannot start; `reason` names the setting and how to fix it."
    ),
    LogEvent("server.started", "info", "database version", "The server's database is open."),
    LogEvent("server.stopped", "info", "", "The server ended."),
    LogEvent(
        "stream.dropped",
        "warning",
        "reason",
        "A reader of /changes/stream or of the page was too slow and was disconnected; it can continue where it was.",
    ),
    LogEvent(
        "study.declared",
        "info",
        "study_instance_uid declared changed",
        "A person declared the study complete or incomplete; `changed` says if its row changed at once.",
    ),
    LogEvent(
        "study.failed",
        "error",
        "study_instance_uid exception",
        "Server: a study could not be decided; it is left alone for an hour, or until something comes to it.",
    ),
    LogEvent(
        "study.told",
        "info",
        "study_instance_uid revision verdict policy contradicted",
        "Server: the verdict of a study changed, as `policy` decided; images came after one that is `contradicted`.",
    ),
    LogEvent("trace.ended", "error", "reason", "`GATEWAY_TRACE_PATH` cannot be written any more."),
    LogEvent("warning.raised", "warning", "category place", "A Python library gave a warning."),
    LogEvent(
        "webhook.delayed",
        "warning",
        "webhook change reason",
        "A webhook did not accept a change; it is sent again.",
    ),
    LogEvent(
        "webhook.ended",
        "error",
        "webhook change reason",
        "A webhook answered 410: it is sent nothing more until it is replayed.",
    ),
    LogEvent(
        "webhook.interrupted",
        "warning",
        "webhook reason",
        "The database did not answer; the webhook continues when it does.",
    ),
    LogEvent("webhook.rejected", "error", "webhook change reason", "A change was given up for a webhook."),
    LogEvent(
        "webhook.settled",
        "info",
        "webhook decision",
        "An operator had the changes that were given up sent again (`replay`), or dropped for good (`discard`).",
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
        "How many images had arrived by when, in seconds after the first one: `0:1 0.31:12 1.2:50`. `At` is when the "
        "last one arrived.",
    ),
    TimelineEvent(
        "images.counted",
        "Association Images Released",
        "How many images an association brought, and whether it had ended. `At` is when it ended, or else the time of "
        "the report.",
    ),
    TimelineEvent(
        "pacs.answered",
        "PACS Count Known Missing Fetched Problem StudySeries StudyInstances",
        "The PACS was asked about the series; its answer. The last two are what it has of the study, if it said so.",
    ),
    TimelineEvent("report.stored", "Added Known Verdict", "Server: the report changed the row."),
    TimelineEvent(
        "series.declared",
        "Declared By Because Withdrawn",
        "Server: a person declared the series complete or incomplete; `Withdrawn` is the verdict that it lost by that.",
    ),
    TimelineEvent(
        "series.gapped",
        "Numbers",
        "Server: the series is over, and these InstanceNumbers between its first and its last are not here.",
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
        "Server: the series was purged at that time, with `Images` images, and was sent again later ([what "
        "grows](operations.md#what-grows-and-what-to-delete)).",
    ),
    TimelineEvent("series.reopened", "LateByS Verdict", "An image came after this verdict."),
    TimelineEvent("series.reported", "Verdict Images", "The series was closed with this verdict."),
    TimelineEvent(
        "study.told",
        "Verdict Policy Basis Withdrawn",
        "Server: the verdict of the study changed, or a person withdrew it. It stands at one of its series.",
    ),
    TimelineEvent(
        "timeline.shortened",
        "Dropped Until",
        "Server: `Dropped` older events were removed here, the last of them of the time `Until`.",
    ),
    TimelineEvent("verdict.contradicted", "Verdict IdlePolicy Added", "Server: images came after this verdict."),
)
