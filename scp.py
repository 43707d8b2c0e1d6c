"""DICOM in: a C-STORE SCP that awaits `handle_store` for every instance (PS3.4 Annex B, PS3.7 §9.1.1)."""

import asyncio
import logging
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from typing import NamedTuple, cast

import structlog
from pydicom.dataset import Dataset
from pynetdicom import AE, ALL_TRANSFER_SYNTAXES, _config, evt
from pynetdicom.dimse_primitives import C_STORE
from pynetdicom.sop_class import Verification  # type: ignore[attr-defined]
from pynetdicom.transport import ThreadedAssociationServer

from header import HeaderError, read_instance
from models import GatewayError, Instance
from settings import GatewaySettings

# C-STORE statuses, PS3.4 Annex B.2.3
SUCCESS = 0x0000
OUT_OF_RESOURCES = 0xA700
DATA_SET_MISMATCH = 0xA900
CANNOT_UNDERSTAND = 0xC000
PROCESSING_FAILURE = 0x0110  # PS3.7 §C.5.14

MAXIMUM_PDU_BYTES = 131072
MAXIMUM_ASSOCIATIONS = 100
HOP_MARGIN_S = 5.0  # handle_store bounds its own wait; this bounds a loop that no longer runs

HandleStore = Callable[[Instance], Awaitable[int]]
"""Keeps one instance and returns its C-STORE status; must bound its own wait."""

log = structlog.get_logger()


class CannotListen(GatewayError):
    """The DICOM port cannot be bound."""

    def __init__(self, settings: GatewaySettings, error: OSError) -> None:
        super().__init__(
            f"cannot listen on GATEWAY_SCP_HOST={settings.scp_host} GATEWAY_SCP_PORT={settings.scp_port}: "
            f"{error.strerror}. Stop what uses it, or choose another address or port (port 0 takes a free one)."
        )


class Arrival(NamedTuple):
    """A received instance on its way to being kept; `status` takes its C-STORE status."""

    instance: Instance
    status: asyncio.Future[int]


def enqueue(put: Callable[[Arrival], Awaitable[None]], timeout_s: float) -> HandleStore:
    """A `handle_store` that puts on a bounded queue and waits until someone sets the status.

    Not kept within `timeout_s` is OUT_OF_RESOURCES; the future is then cancelled and the instance must not be kept.
    """

    async def handle_store(instance: Instance) -> int:
        arrival = Arrival(instance, asyncio.get_running_loop().create_future())
        try:
            async with asyncio.timeout(timeout_s):
                await put(arrival)
                return await arrival.status
        except TimeoutError:
            arrival.status.cancel()
            log.warning("instance.refused", sop_instance_uid=instance.sop_instance_uid, reason="inbox_timeout_s passed")
            return OUT_OF_RESOURCES

    return handle_store


@asynccontextmanager
async def serve_scp(
    settings: GatewaySettings, handle_store: HandleStore, saturated: Callable[[], str | None]
) -> AsyncIterator[int]:
    """Listen for associations; yields the port bound.

    While `saturated` gives a reason, new associations are rejected as transient, local limit exceeded (PS3.8 table
    9-21); it is called from other threads. On exit: stops accepting, lets open associations finish within
    `drain_timeout_s`, then aborts what is left.
    Raises CannotListen where the address cannot be bound.
    """
    scp = _Scp(handle_store, asyncio.get_running_loop(), settings.inbox_timeout_s + HOP_MARGIN_S)
    try:
        server = _application_entity(settings, saturated).start_server(
            (settings.scp_host, settings.scp_port),
            block=False,
            evt_handlers=[(evt.EVT_C_STORE, scp.on_c_store), (evt.EVT_C_ECHO, scp.on_c_echo)],
        )
    except OSError as error:
        raise CannotListen(settings, error) from error
    server = cast(ThreadedAssociationServer, server)  # None only where it blocks
    try:
        yield int(server.server_address[1])
    finally:
        await asyncio.to_thread(server.shutdown)
        await _drain(server, settings.drain_timeout_s)


class _ApplicationEntity(AE):
    """pynetdicom's AE, which rejects an association beyond `maximum_associations` as transient, local limit."""

    def __init__(self, ae_title: str, saturated: Callable[[], str | None]) -> None:
        super().__init__(ae_title=ae_title)
        self._saturated = saturated

    @property  # type: ignore[misc]
    def maximum_associations(self) -> int:
        return 0 if self._saturated() else MAXIMUM_ASSOCIATIONS


def _application_entity(settings: GatewaySettings, saturated: Callable[[], str | None]) -> AE:
    """An AE that accepts every storage SOP class, private ones included, in every transfer syntax, and C-ECHO."""
    _config.UNRESTRICTED_STORAGE_SERVICE = True
    _config.LOG_HANDLER_LEVEL = "none"  # per-message logs cost time and may show identifiers
    logging.getLogger("pynetdicom").setLevel(logging.ERROR)
    ae = _ApplicationEntity(settings.ae_title, saturated)
    ae.maximum_pdu_size = MAXIMUM_PDU_BYTES
    ae.add_supported_context(Verification, ALL_TRANSFER_SYNTAXES)
    return ae


async def _drain(server: ThreadedAssociationServer, drain_timeout_s: float) -> None:
    """Wait for open associations to end; abort those that outlast `drain_timeout_s`."""
    loop = asyncio.get_running_loop()
    deadline = loop.time() + drain_timeout_s
    associations = server.active_associations
    for assoc in associations:
        await asyncio.to_thread(assoc.join, max(0.0, deadline - loop.time()))
    for assoc in associations:
        if assoc.is_alive():
            log.error(
                "association.aborted",
                calling_ae_title=assoc.requestor.ae_title,
                reason=f"drain exceeded drain_timeout_s={drain_timeout_s:g}",
            )
            await asyncio.to_thread(assoc.abort)


class _Scp:
    """pynetdicom's handlers. They run in association threads and make the one hop into the event loop."""

    def __init__(self, handle_store: HandleStore, loop: asyncio.AbstractEventLoop, hop_timeout_s: float) -> None:
        self._handle_store = handle_store
        self._loop = loop
        self._hop_timeout_s = hop_timeout_s

    def on_c_echo(self, event: evt.Event) -> int:
        return SUCCESS

    def on_c_store(self, event: evt.Event) -> Dataset:
        try:
            instance = read_instance(
                event.encoded_dataset(include_meta=False),
                transfer_syntax_uid=str(event.context.transfer_syntax),
                calling_ae_title=event.assoc.requestor.ae_title,
                peer_address=event.assoc.requestor.address or "",
                received_at=datetime.now(UTC),
            )
        except HeaderError as error:
            return _refusal(event, CANNOT_UNDERSTAND, str(error), error.tag)
        except Exception as error:  # the edge to hostile bytes: pynetdicom would log the text, which may be a patient's
            return _refusal(event, CANNOT_UNDERSTAND, f"header unreadable: {type(error).__name__}")
        request = cast(C_STORE, event.request)
        if instance.sop_instance_uid != request.AffectedSOPInstanceUID:
            return _refusal(event, DATA_SET_MISMATCH, "SOPInstanceUID is not the command's", 0x00080018)
        if instance.sop_class_uid not in ("", request.AffectedSOPClassUID):
            return _refusal(event, DATA_SET_MISMATCH, "SOPClassUID is not the command's", 0x00080016)
        return _status(self._hop(instance))

    def _hop(self, instance: Instance) -> int:
        """Run `handle_store` on the loop and wait for its status: the one thread-to-loop hop."""
        future = asyncio.run_coroutine_threadsafe(self._keep(instance), self._loop)
        try:
            return future.result(self._hop_timeout_s)
        except TimeoutError:
            future.cancel()
            return OUT_OF_RESOURCES
        except Exception as error:  # the edge again: not kept is never Success, and the text may be a patient's
            log.error("instance.refused", reason=type(error).__name__, sop_instance_uid=instance.sop_instance_uid)
            return PROCESSING_FAILURE

    async def _keep(self, instance: Instance) -> int:
        return await self._handle_store(instance)


def _status(code: int) -> Dataset:
    status = Dataset()
    status.Status = code
    return status


def _refusal(event: evt.Event, code: int, comment: str, offending: int | None = None) -> Dataset:
    """A failure status with the reason in Error Comment and Offending Element (PS3.7 §C.4)."""
    status = _status(code)
    status.ErrorComment = comment[:64]
    if offending is not None:
        status.OffendingElement = offending
    log.warning(
        "instance.refused",
        status=f"0x{code:04X}",
        reason=comment,
        calling_ae_title=event.assoc.requestor.ae_title,
        peer_address=event.assoc.requestor.address,
    )
    return status
