"""The SCP in this process, and what associates with it: stock pynetdicom, and a TCP client that says what it likes."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from typing import Any

from pydicom.dataset import Dataset
from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian
from pynetdicom import AE
from pynetdicom.association import Association
from pynetdicom.presentation import build_context

from bench.rig.senders import pure_scu
from common.settings import GatewaySettings
from dicom.statuses import SUCCESS
from models import Instance
from scp import serve_scp


def settings(**changes: Any) -> GatewaySettings:
    """Returns settings with which the SCP listens on a free port."""
    return GatewaySettings(scp_port=0, **changes)


def unsaturated() -> None:
    """Returns why no image is taken: nothing keeps any away."""
    return


class Scu:
    """One association of a blocking SCU, its calls made in a thread."""

    def __init__(self, assoc: Association) -> None:
        self.assoc = assoc

    async def store(self, ds: Dataset, **changes: Any) -> Dataset:
        return await asyncio.to_thread(self._store, ds, changes)

    def _store(self, ds: Dataset, changes: dict[str, Any]) -> Dataset:
        ds = Dataset(ds)
        ds.file_meta = Dataset()  # type: ignore[assignment]
        context = self.assoc.accepted_contexts[0]
        ds.file_meta.TransferSyntaxUID = changes.pop("syntax", context.transfer_syntax[0])
        return self.assoc.send_c_store(ds, **changes)


@asynccontextmanager
async def associated(port: int, sop_class: str = CTImageStorage, syntax: Any = None) -> AsyncIterator[Scu]:
    """Opens an association of stock pynetdicom's for one presentation context, and releases it at the end."""
    ae = AE("SCU")
    contexts = [build_context(sop_class, syntax or ExplicitVRLittleEndian)]
    assoc = pure_scu(await asyncio.to_thread(ae.associate, "127.0.0.1", port, contexts))
    assert assoc.is_established
    try:
        yield Scu(assoc)
    finally:
        if assoc.is_established:
            await asyncio.to_thread(assoc.release)


class Kept:
    """A handle_store that keeps everything in a list."""

    def __init__(self) -> None:
        self.instances: list[Instance] = []

    async def __call__(self, instance: Instance) -> int:
        self.instances.append(instance)
        return SUCCESS


@asynccontextmanager
async def listening(**settings: Any) -> AsyncIterator[tuple[int, Kept]]:
    """Runs the SCP with these settings; yields its port and what it keeps."""
    kept = Kept()
    async with serve_scp(GatewaySettings(scp_port=0, drain_timeout_s=0.1, **settings), kept, unsaturated) as port:
        yield port, kept


class Raw:
    """A TCP client that says what it likes."""

    def __init__(self, port: int, source: str = "127.0.0.1", *, buffer: int = 2**20) -> None:
        """`buffer` is how many bytes it takes before they are asked for."""
        self.port, self.source, self.buffer = port, source, buffer
        self.reader: asyncio.StreamReader
        self.writer: asyncio.StreamWriter

    async def __aenter__(self) -> "Raw":
        self.reader, self.writer = await asyncio.open_connection(
            "127.0.0.1", self.port, local_addr=(self.source, 0), limit=self.buffer
        )
        return self

    async def __aexit__(self, *_: object) -> None:
        self.writer.transport.abort()

    async def say(self, data: bytes) -> None:
        self.writer.write(data)
        await self.writer.drain()

    async def pdu(self) -> bytes:
        head = await self.reader.readexactly(6)
        return head + await self.reader.readexactly(int.from_bytes(head[2:], "big"))

    async def end(self) -> bytes:
        """All that comes until the other side closes, or resets what is still being said to it."""
        came = b""
        async with asyncio.timeout(120):
            with suppress(ConnectionError):
                while data := await self.reader.read(65536):
                    came += data
        return came
