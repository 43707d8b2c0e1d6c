"""Every metric: name, meaning, unit and labels, named as Prometheus recommends. No patient data and no UIDs."""

from bisect import bisect_left

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


class _Plain:
    """A number of a metric that only one thread changes, so without a lock."""

    __slots__ = ("number",)

    def __init__(self) -> None:
        self.number = 0.0

    def get(self) -> float:
        return self.number

    def get_exemplar(self) -> None:
        return None


class LoopCounter(Counter):
    """A counter for every image: it is counted in the event loop alone, at a fifth of the cost."""

    def _metric_init(self) -> None:
        super()._metric_init()
        self._value: _Plain = _Plain()

    def inc(self, amount: float = 1, exemplar: object = None) -> None:
        self._value.number += amount


class LoopHistogram(Histogram):
    """A histogram for every image: it is observed in the event loop alone, at a fifth of the cost."""

    def _metric_init(self) -> None:
        super()._metric_init()
        self._sum: _Plain = _Plain()
        self._buckets: list[_Plain] = [_Plain() for _ in self._upper_bounds]

    def observe(self, amount: float, exemplar: object = None) -> None:
        self._sum.number += amount
        self._buckets[bisect_left(self._upper_bounds, amount)].number += 1


FAST_S = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10)
SLOW_S = (0.05, 0.1, 0.25, 0.5, 1, 2, 4, 8, 15, 30, 60, 120, 300, 900)
BATCH = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024)

# --- the gateway: DICOM in --------------------------------------------------------------------------------------

associations_open = Gauge("gateway_associations_open", "Associations that are open now.", registry=GATEWAY)
associations = Counter("gateway_associations", "Associations accepted.", registry=GATEWAY)
associations_refused = Counter(
    "gateway_associations_refused",
    "Connections closed and associations rejected. reason: address, ae_title, limit, saturated, tls, protocol.",
    ["reason"],
    registry=GATEWAY,
)
associations_aborted = Counter(
    "gateway_associations_aborted", "Associations that the gateway aborted after a time-out.", registry=GATEWAY
)
instances_received = LoopCounter("gateway_instances_received", "Instances received completely.", registry=GATEWAY)
received_bytes = LoopCounter("gateway_received_bytes", "Bytes of received data sets.", registry=GATEWAY)
instances_doubtful = Counter(
    "gateway_instances_doubtful",
    "Instances that were kept although they violate the standard; their series say how.",
    registry=GATEWAY,
)
store_responses = LoopCounter(
    "gateway_store_responses", "C-STORE responses. status: as in PS3.4 Annex B.2.3.", ["status"], registry=GATEWAY
)
store_seconds = LoopHistogram(
    "gateway_store_seconds",
    "Time from the last byte of an instance to its C-STORE response.",
    buckets=FAST_S,
    registry=GATEWAY,
)

# --- the gateway: what it holds ---------------------------------------------------------------------------------

inbox_instances = Gauge(
    "gateway_inbox_instances", "Instances that wait between the SCP and the collector.", registry=GATEWAY
)
inbox_size = Gauge(
    "gateway_inbox_size", "Most instances that may wait in the inbox (GATEWAY_INBOX_SIZE).", registry=GATEWAY
)
commit_seconds = LoopHistogram(
    "gateway_journal_commit_seconds",
    "Time of one commit of received instances, fsync included.",
    buckets=FAST_S,
    registry=GATEWAY,
)
commit_instances = LoopHistogram(
    "gateway_journal_commit_instances", "Instances in one commit.", buckets=BATCH, registry=GATEWAY
)
journal_failures = Counter("gateway_journal_failures", "Writes to the journal that failed.", registry=GATEWAY)
journal_bytes = Gauge("gateway_journal_bytes", "Bytes of the journal in use.", registry=GATEWAY)
saturated = Gauge(
    "gateway_saturated",
    "1 while images are refused because the journal or the disk is full or failing, else 0.",
    registry=GATEWAY,
)
journal_max_bytes = Gauge(
    "gateway_journal_max_bytes", "Largest size of the journal (GATEWAY_JOURNAL_MAX_BYTES).", registry=GATEWAY
)
pending_instances = Gauge("gateway_pending_instances", "Instances that are open or undelivered.", registry=GATEWAY)
max_pending_instances = Gauge(
    "gateway_max_pending_instances",
    "Most instances that may be open or undelivered (GATEWAY_MAX_PENDING_INSTANCES).",
    registry=GATEWAY,
)
open_series = Gauge("gateway_open_series", "Series that still receive images.", registry=GATEWAY)
open_instances = Gauge("gateway_open_instances", "Instances of open series in the journal.", registry=GATEWAY)

# --- the gateway: series out ------------------------------------------------------------------------------------

series_reported = Counter("gateway_series_reported", "Series reported, by verdict.", ["verdict"], registry=GATEWAY)
false_completions = Counter(
    "gateway_false_completions", "Series that got more images after this verdict.", ["verdict"], registry=GATEWAY
)
added_latency_seconds = Histogram(
    "gateway_added_latency_seconds",
    "Time from the last image of a series to its report, spent on deciding that it was the last one.",
    buckets=SLOW_S,
    registry=GATEWAY,
)
row_latency_seconds = Histogram(
    "gateway_row_latency_seconds",
    "Time from the last image of a series to the server's answer that its row is stored.",
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
    "Attempts to post a report. outcome: delivered, delayed, rejected.",
    ["outcome"],
    registry=GATEWAY,
)
dispatch_seconds = Histogram(
    "gateway_dispatch_seconds", "Time of one attempt to post a report.", buckets=FAST_S, registry=GATEWAY
)
undelivered_reports = Gauge(
    "gateway_undelivered_reports", "Reports that the server has not acknowledged.", registry=GATEWAY
)
oldest_undelivered_seconds = Gauge(
    "gateway_oldest_undelivered_seconds", "Age of the oldest undelivered report; 0 if there is none.", registry=GATEWAY
)
dead_letters = Gauge(
    "gateway_dead_letters", "Reports refused for good and not yet replayed or discarded.", registry=GATEWAY
)

# --- the server -------------------------------------------------------------------------------------------------

requests = Counter(
    "server_requests",
    "Requests answered. route: the template of the path.",
    ["method", "route", "status"],
    registry=SERVER,
)
request_seconds = Histogram(
    "server_request_seconds",
    "Time of one request; a stream counts until it ends.",
    ["route"],
    buckets=FAST_S,
    registry=SERVER,
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
    "Time of one transaction, including the wait for a connection and repeated attempts. kind: read, write.",
    ["kind"],
    buckets=FAST_S,
    registry=SERVER,
)
database_retries = Counter("server_database_retries", "Transactions that were tried again.", registry=SERVER)
database_failures = Counter("server_database_failures", "Transactions that were given up.", registry=SERVER)
heartbeats = Counter("server_heartbeats", "Heartbeats received from gateways.", registry=SERVER)
watchers = Gauge("server_watchers", "Open streams of changes and of the live page.", registry=SERVER)
incomplete_series = Gauge(
    "server_incomplete_series",
    "Series with missing images whose last change is between an hour and a day old. Counted up to 1000.",
    registry=SERVER,
)
studies_told = Counter("server_studies_told", "Verdicts of studies that were told.", ["verdict"], registry=SERVER)
study_false_completions = Counter(
    "server_study_false_completions",
    "Studies that got more images or series after this verdict.",
    ["verdict"],
    registry=SERVER,
)
open_studies = Gauge(
    "server_open_studies", "Studies without a verdict: they are not over yet. Counted up to 1000.", registry=SERVER
)
incomplete_study_seconds = Gauge(
    "server_incomplete_study_seconds",
    "Time since the last image of the study that has lacked images or series longest, among those that changed within "
    "a day; 0 if there is none.",
    registry=SERVER,
)
source_silent_seconds = Gauge(
    "server_source_silent_seconds",
    "Time since the last image of a source (calling AE title, modality, station), for the 100 sources known longest.",
    ["source"],
    registry=SERVER,
)
source_missed_seconds = Gauge(
    "server_source_missed_seconds",
    "The part of server_source_silent_seconds that are hours in which the source usually sends.",
    ["source"],
    registry=SERVER,
)

# Prometheus sees no increase if a counter first appears with its first event, so counters with known labels begin at 0.
KNOWN: dict[Counter, str] = {
    associations_refused: "address ae_title limit saturated tls protocol",
    store_responses: "0x0000 0x0110 0xA700 0xA900 0xC000",
    series_reported: "verified declared expected idle capped drained",
    false_completions: "verified declared expected idle",
    pacs_questions: "confirmed differs failed",
    dispatch_attempts: "delivered delayed rejected",
    reports_stored: "created revised unchanged conflict",
    conflicts_resolved: "dismiss merge correct",
    studies_told: "verified declared expected idle capped",
    study_false_completions: "verified declared expected idle",
}
for _counter, _labels in KNOWN.items():
    for _label in _labels.split():
        _counter.labels(_label)


def total(metric: Counter | Gauge) -> float:
    """Return a metric's value, summed over all labels."""
    (family,) = metric.collect()
    return sum(sample.value for sample in family.samples if not sample.name.endswith("_created"))
