"""Every number that is measured: name, meaning, unit, labels (Prometheus' naming). Never a patient's, never a UID."""

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    GCCollector,
    Histogram,
    PlatformCollector,
    ProcessCollector,
)

GATEWAY, SERVER = CollectorRegistry(), CollectorRegistry()
for registry in (GATEWAY, SERVER):
    ProcessCollector(registry=registry)
    PlatformCollector(registry=registry)
    GCCollector(registry=registry)

FAST_S = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10)
SLOW_S = (0.05, 0.1, 0.25, 0.5, 1, 2, 4, 8, 15, 30, 60, 120, 300, 900)
BATCH = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024)

# --- the gateway: DICOM in --------------------------------------------------------------------------------------

associations_open = Gauge("gateway_associations_open", "Associations that are established.", registry=GATEWAY)
associations = Counter("gateway_associations", "Associations accepted.", registry=GATEWAY)
associations_refused = Counter(
    "gateway_associations_refused",
    "Connections closed and associations rejected. reason: address, ae_title, limit, saturated, tls, protocol.",
    ["reason"],
    registry=GATEWAY,
)
associations_aborted = Counter(
    "gateway_associations_aborted", "Associations that we aborted after a time-out of ours.", registry=GATEWAY
)
instances_received = Counter("gateway_instances_received", "Instances received whole.", registry=GATEWAY)
received_bytes = Counter("gateway_received_bytes", "Bytes of their data sets.", registry=GATEWAY)
instances_doubtful = Counter(
    "gateway_instances_doubtful", "Instances kept that break the standard: their series say how.", registry=GATEWAY
)
store_responses = Counter(
    "gateway_store_responses", "C-STORE responses. status: as in PS3.4 Annex B.2.3.", ["status"], registry=GATEWAY
)
store_seconds = Histogram(
    "gateway_store_seconds",
    "From the last byte of an instance to its C-STORE response.",
    buckets=FAST_S,
    registry=GATEWAY,
)

# --- the gateway: what it holds ---------------------------------------------------------------------------------

inbox_instances = Gauge("gateway_inbox_instances", "Instances between the SCP and the collector.", registry=GATEWAY)
inbox_size = Gauge("gateway_inbox_size", "How many of them there may be (GATEWAY_INBOX_SIZE).", registry=GATEWAY)
commit_seconds = Histogram(
    "gateway_journal_commit_seconds",
    "One commit of received instances, fsync included.",
    buckets=FAST_S,
    registry=GATEWAY,
)
commit_instances = Histogram(
    "gateway_journal_commit_instances", "Instances that one commit keeps.", buckets=BATCH, registry=GATEWAY
)
journal_failures = Counter("gateway_journal_failures", "Writes that the journal could not do.", registry=GATEWAY)
journal_bytes = Gauge("gateway_journal_bytes", "Size of the journal in use.", registry=GATEWAY)
saturated = Gauge(
    "gateway_saturated", "1 while nothing is taken in: journal or disk full or failing.", registry=GATEWAY
)
journal_max_bytes = Gauge(
    "gateway_journal_max_bytes", "How large it may be (GATEWAY_JOURNAL_MAX_BYTES).", registry=GATEWAY
)
pending_instances = Gauge("gateway_pending_instances", "Instances open or undelivered.", registry=GATEWAY)
max_pending_instances = Gauge(
    "gateway_max_pending_instances",
    "How many of them there may be (GATEWAY_MAX_PENDING_INSTANCES).",
    registry=GATEWAY,
)
open_series = Gauge("gateway_open_series", "Series that still receive.", registry=GATEWAY)
open_instances = Gauge("gateway_open_instances", "Instances of open series, in the journal.", registry=GATEWAY)

# --- the gateway: series out ------------------------------------------------------------------------------------

series_reported = Counter("gateway_series_reported", "Series reported, by verdict.", ["verdict"], registry=GATEWAY)
false_completions = Counter(
    "gateway_false_completions", "Series that got more images after this verdict.", ["verdict"], registry=GATEWAY
)
added_latency_seconds = Histogram(
    "gateway_added_latency_seconds",
    "From the last image of a series to its report: what deciding that it was the last one takes.",
    buckets=SLOW_S,
    registry=GATEWAY,
)
row_latency_seconds = Histogram(
    "gateway_row_latency_seconds",
    "From the last image of a series to the server's word that its row is stored.",
    buckets=SLOW_S,
    registry=GATEWAY,
)
pacs_questions = Counter(
    "gateway_pacs_questions",
    "Questions to a PACS. outcome: confirmed, differs, failed.",
    ["outcome"],
    registry=GATEWAY,
)
dispatch_attempts = Counter(
    "gateway_dispatch_attempts",
    "Posts of reports. outcome: delivered, delayed, rejected.",
    ["outcome"],
    registry=GATEWAY,
)
dispatch_seconds = Histogram("gateway_dispatch_seconds", "One post of a report.", buckets=FAST_S, registry=GATEWAY)
undelivered_reports = Gauge(
    "gateway_undelivered_reports", "Reports that the server has not acknowledged.", registry=GATEWAY
)
oldest_undelivered_seconds = Gauge(
    "gateway_oldest_undelivered_seconds", "Age of the oldest of them; 0 where there is none.", registry=GATEWAY
)
dead_letters = Gauge("gateway_dead_letters", "Reports refused for good, until replayed or discarded.", registry=GATEWAY)

# --- the server -------------------------------------------------------------------------------------------------

requests = Counter(
    "server_requests", "Requests answered. route: its template.", ["method", "route", "status"], registry=SERVER
)
request_seconds = Histogram(
    "server_request_seconds", "One request; streams count until they end.", ["route"], buckets=FAST_S, registry=SERVER
)
reports_stored = Counter(
    "server_reports_stored",
    "Reports stored. outcome: created, revised, unchanged, conflict.",
    ["outcome"],
    registry=SERVER,
)
instances_stored = Counter("server_instances_stored", "Instances that reports added to series.", registry=SERVER)
conflicts_resolved = Counter(
    "server_conflicts_resolved", "Conflicts settled by an operator.", ["decision"], registry=SERVER
)
database_seconds = Histogram(
    "server_database_seconds",
    "One transaction, waiting for a connection and tries included. kind: read, write.",
    ["kind"],
    buckets=FAST_S,
    registry=SERVER,
)
database_retries = Counter("server_database_retries", "Transactions tried again.", registry=SERVER)
database_failures = Counter("server_database_failures", "Transactions given up.", registry=SERVER)
heartbeats = Counter("server_heartbeats", "States that gateways reported.", registry=SERVER)
watchers = Gauge("server_watchers", "Open streams of changes and of the live page.", registry=SERVER)
incomplete_series = Gauge(
    "server_incomplete_series",
    "Series with images missing whose last change is an hour to a day old; 1000 are many.",
    registry=SERVER,
)
source_silent_seconds = Gauge(
    "server_source_silent_seconds",
    "Since the last image of a source: calling AE title, modality, station. Of the 100 known longest.",
    ["source"],
    registry=SERVER,
)
source_missed_seconds = Gauge(
    "server_source_missed_seconds",
    "Of that, the whole hours in which the source usually sends.",
    ["source"],
    registry=SERVER,
)

# A counter whose first event also makes it known shows no increase: those whose labels are known begin at 0.
KNOWN: dict[Counter, str] = {
    associations_refused: "address ae_title limit saturated tls protocol",
    store_responses: "0x0000 0x0110 0xA700 0xA900 0xC000",
    series_reported: "verified declared expected idle capped drained",
    false_completions: "verified declared expected idle",
    pacs_questions: "confirmed differs failed",
    dispatch_attempts: "delivered delayed rejected",
    reports_stored: "created revised unchanged conflict",
    conflicts_resolved: "dismiss merge correct",
}
for _counter, _labels in KNOWN.items():
    for _label in _labels.split():
        _counter.labels(_label)


def total(metric: Counter | Gauge) -> float:
    """Its value, over all its labels."""
    (family,) = metric.collect()
    return sum(sample.value for sample in family.samples if not sample.name.endswith("_created"))
