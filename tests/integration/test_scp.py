"""The SCP against stock pynetdicom as SCU, over real sockets."""

import asyncio
from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest
from pydicom.dataset import Dataset
from pydicom.uid import (
    CTImageStorage,
    DeflatedExplicitVRLittleEndian,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    JPEG2000Lossless,
)
from pynetdicom import AE, ALL_TRANSFER_SYNTAXES, AllStoragePresentationContexts
from pynetdicom.dsutils import encode
from pynetdicom.presentation import build_context
from pynetdicom.sop_class import PatientRootQueryRetrieveInformationModelFind, Verification  # type: ignore[attr-defined]

import models
from common.settings import GatewaySettings
from dicom.listening import CannotListen
from dicom.statuses import CANNOT_UNDERSTAND, DATA_SET_MISMATCH, OUT_OF_RESOURCES, PROCESSING_FAILURE, SUCCESS
from models import Instance
from scp import Arrival, HandleStore, enqueue, serve_scp
from tests.rig.associations import Kept, Scu, associated, settings, unsaturated
from tests.rig.factories import SERIES, STUDY, make_dataset

PRIVATE_SOP_CLASS = "1.2.826.0.1.3680043.10.99.1"
PRIVATE_TRANSFER_SYNTAX = "1.2.826.0.1.3680043.10.99.2"


@pytest.fixture
def kept() -> Kept:
    return Kept()


@pytest.fixture
async def port(kept: Kept) -> AsyncIterator[int]:
    async with serve_scp(settings(), kept, unsaturated) as port:
        yield port


async def test_instance_reaches_handle_store(port: int, kept: Kept) -> None:
    async with associated(port) as scu:
        assert (await scu.store(make_dataset())).Status == SUCCESS
    (instance,) = kept.instances
    assert (instance.study_instance_uid, instance.series_instance_uid) == (STUDY, SERIES)
    assert (instance.sop_instance_uid, instance.sop_class_uid) == (f"{SERIES}.1", CTImageStorage)
    assert (instance.calling_ae_title, instance.peer_address) == ("SCU", "127.0.0.1")
    assert instance.called_ae_title == "ANY-SCP"  # stock pynetdicom's default
    assert instance.received_at.tzinfo is not None
    assert instance.text("PatientName") == "Test^One"


@pytest.mark.parametrize(
    "syntax", [ImplicitVRLittleEndian, ExplicitVRLittleEndian, ExplicitVRBigEndian, DeflatedExplicitVRLittleEndian]
)
async def test_native_transfer_syntax_is_read(port: int, kept: Kept, syntax: str) -> None:
    async with associated(port, syntax=syntax) as scu:
        assert (await scu.store(make_dataset())).Status == SUCCESS
    assert kept.instances[0].attributes["Rows"] == ("8",)
    assert kept.instances[0].transfer_syntax_uid == syntax


async def test_every_storage_class_and_transfer_syntax_is_accepted(port: int) -> None:
    classes = [str(context.abstract_syntax) for context in AllStoragePresentationContexts] + [PRIVATE_SOP_CLASS]
    for start in range(0, len(classes), 128):  # an association has at most 128 contexts, PS3.8 §9.3.2.2
        contexts = [build_context(uid, ALL_TRANSFER_SYNTAXES) for uid in classes[start : start + 128]]
        assoc = await asyncio.to_thread(AE().associate, "127.0.0.1", port, contexts)
        assert len(assoc.accepted_contexts) == len(contexts)
        await asyncio.to_thread(assoc.release)
    contexts = [build_context(CTImageStorage, syntax) for syntax in [*ALL_TRANSFER_SYNTAXES, PRIVATE_TRANSFER_SYNTAX]]
    assoc = await asyncio.to_thread(AE().associate, "127.0.0.1", port, contexts)
    assert len(assoc.accepted_contexts) == len(contexts)
    await asyncio.to_thread(assoc.release)


@pytest.mark.parametrize(
    ("sop_class", "syntax"),
    [(PRIVATE_SOP_CLASS, ExplicitVRLittleEndian), (CTImageStorage, JPEG2000Lossless)],
)
async def test_private_class_and_compressed_syntax_are_stored(
    port: int, kept: Kept, sop_class: str, syntax: str
) -> None:
    ds = make_dataset()
    ds.SOPClassUID = sop_class
    async with associated(port, sop_class, syntax) as scu:
        assert (await scu.store(ds)).Status == SUCCESS
    assert (kept.instances[0].sop_class_uid, kept.instances[0].transfer_syntax_uid) == (sop_class, syntax)


async def test_echo_is_answered(port: int) -> None:
    async with associated(port, Verification) as scu:
        assert (await asyncio.to_thread(scu.assoc.send_c_echo)).Status == SUCCESS


async def test_other_dimse_is_refused_in_negotiation(port: int) -> None:
    contexts = [build_context(Verification), build_context(PatientRootQueryRetrieveInformationModelFind)]
    assoc = await asyncio.to_thread(AE().associate, "127.0.0.1", port, contexts)
    assert [c.abstract_syntax for c in assoc.accepted_contexts] == [Verification]
    await asyncio.to_thread(assoc.release)


def without(keyword: str) -> Callable[[Dataset], None]:
    return lambda ds: delattr(ds, keyword)


def having(keyword: str, value: Any) -> Callable[[Dataset], None]:
    return lambda ds: setattr(ds, keyword, value)


@pytest.mark.filterwarnings("ignore:Invalid value for VR UI")
@pytest.mark.parametrize(
    ("spoil", "status", "comment", "offending"),
    [
        (without("SeriesInstanceUID"), CANNOT_UNDERSTAND, "SeriesInstanceUID is missing", 0x0020000E),
        (without("StudyInstanceUID"), CANNOT_UNDERSTAND, "StudyInstanceUID is missing", 0x0020000D),
        (having("StudyInstanceUID", ""), CANNOT_UNDERSTAND, "StudyInstanceUID is empty", 0x0020000D),
        (having("SeriesInstanceUID", ["1.2", "1.3"]), CANNOT_UNDERSTAND, "SeriesInstanceUID has several", 0x0020000E),
        (having("SeriesInstanceUID", "1.2\x7f"), CANNOT_UNDERSTAND, "SeriesInstanceUID is not a UID", 0x0020000E),
    ],
)
async def test_data_set_without_identity_is_refused_and_the_association_goes_on(
    port: int, kept: Kept, spoil: Callable[[Dataset], None], status: int, comment: str, offending: int
) -> None:
    ds = make_dataset()
    spoil(ds)
    async with associated(port) as scu:
        answer = await scu.store(ds)
        assert (answer.Status, answer.OffendingElement) == (status, offending)
        assert answer.ErrorComment.startswith(comment)
        assert kept.instances == []
        assert (await scu.store(make_dataset())).Status == SUCCESS


async def test_a_fault_of_ours_in_reading_a_header_refuses_the_image_and_the_association_goes_on(
    port: int, kept: Kept, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise ValueError("Test^One")

    async with associated(port) as scu:
        with monkeypatch.context() as broken:
            broken.setattr("dicom.walk.Walk.feed", fail)
            answer = await scu.store(make_dataset())
        assert (answer.Status, answer.ErrorComment) == (CANNOT_UNDERSTAND, "header unreadable: ValueError")
        assert (await scu.store(make_dataset())).Status == SUCCESS


@pytest.mark.parametrize(
    ("keyword", "value", "status"),
    [
        ("SOPInstanceUID", "1.2.3", DATA_SET_MISMATCH),
        ("SOPClassUID", "1.2.840.10008.5.1.4.1.1.4", SUCCESS),
    ],
)
async def test_command_with_another_instance_than_its_data_set_is_refused_and_another_class_is_said(
    port: int, kept: Kept, monkeypatch: pytest.MonkeyPatch, keyword: str, value: str, status: int
) -> None:
    def altered(ds: Dataset, *args: Any) -> bytes | None:  # the wire carries another UID than the command
        ds = Dataset(ds)
        setattr(ds, keyword, value)
        return encode(ds, *args)

    monkeypatch.setattr("pynetdicom.association.encode", altered)
    async with associated(port) as scu:
        answer = await scu.store(make_dataset())
    assert answer.Status == status
    if status == SUCCESS:
        (instance,) = kept.instances
        assert (instance.sop_class_uid, instance.doubtful) == (value, ("SOPClassUID is not the command's",))
    else:
        assert keyword in answer.ErrorComment
        assert kept.instances == []


async def test_patient_name_that_is_absent_is_none(port: int, kept: Kept) -> None:
    ds = make_dataset()
    del ds.PatientName
    async with associated(port) as scu:
        await scu.store(ds)
    assert kept.instances[0].text("PatientName") is None


async def test_instance_that_nobody_keeps_in_time_is_refused_out_of_resources_and_withdrawn() -> None:
    inbox: asyncio.Queue[Arrival] = asyncio.Queue(1)
    async with serve_scp(settings(), enqueue(inbox, 0.05), unsaturated) as port, associated(port) as scu:
        assert (await scu.store(make_dataset("1"))).Status == OUT_OF_RESOURCES  # on the inbox, not kept
        assert (await scu.store(make_dataset("2"))).Status == OUT_OF_RESOURCES  # no room on the inbox
        withdrawn = inbox.get_nowait()
        assert withdrawn.status.done()  # so nobody keeps it
        assert inbox.empty()


async def test_success_is_answered_only_when_the_status_says_so() -> None:
    inbox: asyncio.Queue[Arrival] = asyncio.Queue(1)
    async with serve_scp(settings(), enqueue(inbox, 60), unsaturated) as port, associated(port) as scu:
        answer = asyncio.create_task(scu.store(make_dataset("1")))
        arrival = await inbox.get()
        assert not answer.done()
        arrival.status.set_result(SUCCESS)
        assert (await answer).Status == SUCCESS


async def test_saturated_rejects_associations_as_transient_and_instances_as_out_of_resources(kept: Kept) -> None:
    saturated = False
    reason = "disk full"
    async with serve_scp(settings(), kept, lambda: reason if saturated else None) as port, associated(port) as scu:
        saturated = True
        for _ in range(5):  # stock pynetdicom may lose a rejection whose connection has ended before it looks
            assoc = await asyncio.to_thread(AE("SCU").associate, "127.0.0.1", port, [build_context(Verification)])
            if assoc.is_rejected:
                break
        assert assoc.is_rejected
        primitive = assoc.acceptor.primitive
        assert primitive is not None
        assert (primitive.result, primitive.result_source, primitive.diagnostic) == (2, 3, 2)  # PS3.8 table 9-21
        assert (await scu.store(make_dataset())).Status == OUT_OF_RESOURCES
        assert not kept.instances
        saturated = False
        assert (await scu.store(make_dataset())).Status == SUCCESS
        async with associated(port):
            pass


async def test_association_is_observed_when_it_is_established_and_when_it_has_ended(kept: Kept) -> None:
    seen: asyncio.Queue[tuple[models.Association, bool]] = asyncio.Queue()

    def observe(association: models.Association) -> None:
        seen.put_nowait((association, association.released_at is not None))

    async with serve_scp(settings(), kept, unsaturated, observe) as port:
        async with associated(port) as scu:
            association, ended = await seen.get()
            assert (association.peer_address, association.number, ended) == ("127.0.0.1", 1, False)
            await scu.store(make_dataset())
            assert kept.instances[0].association is association
            assert kept.instances[0].length > 128
        assert await seen.get() == (association, True)


async def test_failing_handle_store_is_no_success_and_its_text_is_not_logged(
    caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]
) -> None:
    async def fails(instance: Instance) -> int:
        raise RuntimeError(instance.text("PatientName"))

    async with serve_scp(settings(), fails, unsaturated) as port, associated(port) as scu:
        assert (await scu.store(make_dataset())).Status == PROCESSING_FAILURE
    assert "Test^One" not in caplog.text + capfd.readouterr().err


async def test_open_association_may_finish_while_draining(kept: Kept) -> None:
    async with asyncio.TaskGroup() as tasks:
        async with serve_scp(settings(), kept, unsaturated) as port:
            scu_context = associated(port)
            scu = await scu_context.__aenter__()
            sending = tasks.create_task(_send_after_close(scu, port))
        await sending
        await scu_context.__aexit__(None, None, None)
    assert len(kept.instances) == 3


async def _send_after_close(scu: Scu, port: int) -> None:
    """Wait until nobody listens any more, then send on the association that is still open."""
    while True:
        try:
            _, writer = await asyncio.open_connection("127.0.0.1", port)
        except ConnectionError:
            break
        writer.close()
    for n in range(3):
        assert (await scu.store(make_dataset(str(n)))).Status == SUCCESS
    await asyncio.to_thread(scu.assoc.release)


async def test_association_that_outlasts_the_drain_is_aborted(kept: Kept) -> None:
    async with serve_scp(settings(drain_timeout_s=0.1), kept, unsaturated) as port:
        context = associated(port)
        scu = await context.__aenter__()
    await asyncio.to_thread(scu.assoc.join, 10)
    assert scu.assoc.is_aborted


async def test_taken_port_is_named_with_the_cure(port: int) -> None:
    handle_store: HandleStore = Kept()
    with pytest.raises(CannotListen, match=rf"GATEWAY_SCP_PORT={port}.*choose another"):
        async with serve_scp(GatewaySettings(scp_port=port), handle_store, unsaturated):
            pass
