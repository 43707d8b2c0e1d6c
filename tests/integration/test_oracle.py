"""Two oracles: stock pynetdicom's acceptor answers the same A-ASSOCIATE-RQ alike; what DCMTK's accepts, ours does."""

import socket
import struct
from collections.abc import Iterator

import pytest
from pydicom.uid import (
    CTImageStorage,
    DeflatedExplicitVRLittleEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    JPEG2000Lossless,
    MRImageStorage,
)
from pynetdicom import AE, ALL_TRANSFER_SYNTAXES, AllStoragePresentationContexts, _config, build_context, evt
from pynetdicom.pdu import A_ASSOCIATE_AC, A_ASSOCIATE_RQ
from pynetdicom.pdu_primitives import (
    A_ASSOCIATE,
    AsynchronousOperationsWindowNegotiation,
    ImplementationClassUIDNotification,
    MaximumLengthNotification,
    SCP_SCU_RoleSelectionNegotiation,
    SOPClassExtendedNegotiation,
    UserIdentityNegotiation,
)
from pynetdicom.presentation import PresentationContext
from pynetdicom.sop_class import (  # type: ignore[attr-defined]
    PatientRootQueryRetrieveInformationModelFind,
    Verification,
)

from bench.interop import Peer, ask, command, outcome_of
from bench.odd_associations import Odd, odd_associations
from bench.rig.receivers import STORESCP
from dicom.upper_layer import NEED_DATA, Acceptor, AssociateRequested, Limits, Violation

SUPPORTED = [build_context(Verification, ALL_TRANSFER_SYNTAXES)]
CT = build_context(CTImageStorage, [JPEG2000Lossless, ExplicitVRLittleEndian])


@pytest.fixture(scope="module")
def stock_port() -> Iterator[int]:
    before = _config.UNRESTRICTED_STORAGE_SERVICE
    _config.UNRESTRICTED_STORAGE_SERVICE = True
    ae = AE("STORESCP")
    ae.supported_contexts = SUPPORTED
    server = ae.start_server(("127.0.0.1", 0), block=False, evt_handlers=[(evt.EVT_C_ECHO, lambda _: 0)])
    assert server is not None
    yield server.server_address[1]
    server.shutdown()
    _config.UNRESTRICTED_STORAGE_SERVICE = before


def request(contexts: list[PresentationContext], *items: object, called: str = "STORESCP") -> bytes:
    primitive = A_ASSOCIATE()
    primitive.application_context_name = "1.2.840.10008.3.1.1.1"
    primitive.calling_ae_title, primitive.called_ae_title = "SCU", called
    for n, context in enumerate(contexts):
        context.context_id = 2 * n + 1
    primitive.presentation_context_definition_list = contexts
    length, implementation = MaximumLengthNotification(), ImplementationClassUIDNotification()
    length.maximum_length_received = 16384
    implementation.implementation_class_uid = "1.2.3"
    primitive.user_information = [length, implementation, *items]  # type: ignore[list-item]
    pdu = A_ASSOCIATE_RQ()
    pdu.from_primitive(primitive)
    return pdu.encode()


def role(scu: bool, scp: bool) -> SCP_SCU_RoleSelectionNegotiation:
    item = SCP_SCU_RoleSelectionNegotiation()
    item.sop_class_uid, item.scu_role, item.scp_role = CTImageStorage, scu, scp
    return item


def identity(wants_answer: bool) -> UserIdentityNegotiation:
    item = UserIdentityNegotiation()
    item.user_identity_type, item.primary_field = 1, b"someone"
    item.positive_response_requested = wants_answer
    return item


def window() -> AsynchronousOperationsWindowNegotiation:
    item = AsynchronousOperationsWindowNegotiation()
    item.maximum_number_operations_invoked = item.maximum_number_operations_performed = 5
    return item


def extended() -> SOPClassExtendedNegotiation:
    item = SOPClassExtendedNegotiation()
    item.sop_class_uid, item.service_class_application_information = CTImageStorage, b"\x02\x00\x03\x00\x01\x00"
    return item


REQUESTS = {
    "one": request([CT]),
    "several syntaxes": request(
        [build_context(MRImageStorage, [ImplicitVRLittleEndian, DeflatedExplicitVRLittleEndian])]
    ),
    "storage, verification and query": request(
        [CT, build_context(Verification), build_context(PatientRootQueryRetrieveInformationModelFind)]
    ),
    "private class and private syntax": request([build_context("1.2.826.0.1.9.9", "1.2.826.0.1.9.8")]),
    "128 contexts": request(
        [build_context(str(c.abstract_syntax), ALL_TRANSFER_SYNTAXES[:5]) for c in AllStoragePresentationContexts[:128]]
    ),
    "the same class twice": request([build_context(CTImageStorage), build_context(CTImageStorage, JPEG2000Lossless)]),
    "role SCU": request([CT], role(True, False)),
    "role SCP": request([CT], role(False, True)),
    "both roles": request([CT], role(True, True)),
    "user identity": request([CT], identity(False)),
    "user identity, answer wanted": request([CT], identity(True)),
    "asynchronous operations": request([CT], window()),
    "extended negotiation": request([CT], extended()),
    "another called AE title": request([CT], called="SOMEONE"),
    "no protocol version": request([CT])[:6] + b"\0\0" + request([CT])[8:],
    "nonsense": b"\x01\x00\x00\x00\x00\x64" + b"\x01" * 100,
    "not DICOM": b"GET / HTTP/1.1\r\nHost: x\r\n\r\n",
    "data first": b"\x04\x00\x00\x00\x00\x04\x00\x00\x00\x00",
}


def stock_answer(port: int, rq: bytes) -> bytes:
    with socket.create_connection(("127.0.0.1", port), timeout=120) as sock, sock.makefile("rb") as stream:
        sock.sendall(rq)
        head = stream.read(6)
        return head + stream.read(struct.unpack(">L", head[2:])[0])


def our_answer(rq: bytes) -> bytes:
    acceptor = Acceptor(SUPPORTED, Limits())
    acceptor.receive_data(rq)
    match acceptor.next_event():
        case AssociateRequested():
            return acceptor.accept()
        case Violation(_, response):
            assert acceptor.next_event() is NEED_DATA
            return response
        case other:
            raise AssertionError(other)


def meaning(pdu: bytes) -> object:
    """What the peer makes of it: accepted contexts and negotiation items, or the kind of refusal."""
    if pdu[0] != 0x02:
        return pdu[0], pdu[7:9] if pdu[0] == 0x03 else b""
    answer = A_ASSOCIATE_AC()
    answer.decode(pdu)
    primitive = answer.to_primitive()
    contexts = [
        (cx.context_id, cx.result, cx.transfer_syntax if cx.result == 0 else None)
        for cx in primitive.presentation_context_definition_results_list
    ]
    items = [
        f"{type(item).__name__} {sorted((k, v) for k, v in vars(item).items())}"
        for item in primitive.user_information
        if not isinstance(item, MaximumLengthNotification | ImplementationClassUIDNotification)
    ]
    return contexts, sorted(items), primitive.calling_ae_title, primitive.called_ae_title


@pytest.mark.parametrize("name", REQUESTS)
def test_answer_is_that_of_stock_pynetdicom(stock_port: int, name: str) -> None:
    assert meaning(our_answer(REQUESTS[name])) == meaning(stock_answer(stock_port, REQUESTS[name]))


@pytest.fixture(scope="module")
def storescp_port(tmp_path_factory: pytest.TempPathFactory) -> Iterator[int]:
    with command(tmp_path_factory.mktemp("storescp"), [str(STORESCP), "--fork", "--ignore", "+xa"]) as port:
        yield port


PLAIN = [odd for odd in odd_associations() if "mutation" not in odd.name]


@pytest.mark.slow  # storescp answers what it does not like not at all
@pytest.mark.peer("dcmtk")
@pytest.mark.parametrize("odd", PLAIN, ids=lambda odd: odd.name)
def test_what_storescp_accepts_is_accepted(storescp_port: int, odd: Odd) -> None:
    """But for what has a reason, which is only such that ours serves no such thing, or is told not to."""
    accepted = ask(Peer("storescp", storescp_port), odd._replace(source="127.0.0.1")).contexts
    answer = our_answer(odd.request)
    assert odd.refused or accepted <= outcome_of(answer[:1], answer[6:]).contexts
