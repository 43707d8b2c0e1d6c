"""The upper layer's laws: the same bytes give the same events however they are cut; what breaks a rule is cut off."""

import struct
from collections.abc import Iterable, Sequence
from dataclasses import replace
from itertools import pairwise
from typing import Any, NamedTuple

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian
from pynetdicom import ALL_TRANSFER_SYNTAXES, AllStoragePresentationContexts, build_context
from pynetdicom.pdu import A_ASSOCIATE_AC

from bench.rig.senders import associate_rq
from dicom.associate import MAXIMUM_LENGTH
from dicom.command_set import StoreStarted, elements_of
from dicom.upper_layer import (
    INVALID_PDU_PARAMETER,
    MAX_ASSOCIATE_BYTES,
    NEED_DATA,
    PAUSED,
    UNEXPECTED_PDU,
    UNRECOGNIZED_PDU,
    VERIFICATION,
    Aborted,
    Acceptor,
    AssociateRequested,
    EchoRequested,
    Event,
    InstanceFinished,
    Limits,
    OperationRefused,
    Released,
    State,
    Violation,
)
from tests.rig.pdus import ABORT, DATA_SET, ECHO, RELEASE_RQ, SOP_INSTANCE, command, element, p_data, pdv, store
from tests.rig.streams import with_window

SUPPORTED = [build_context(VERIFICATION, ALL_TRANSFER_SYNTAXES)]


class DataSet(NamedTuple):
    """What `data_set` was given between two events."""

    data: bytes


def run(chunks: Iterable[bytes], limits: Limits | None = None) -> tuple[list[Event | DataSet], bytes]:
    """Everything that happens where the caller accepts all, and what it writes."""
    acceptor = Acceptor(SUPPORTED, limits or Limits())
    events: list[Event | DataSet] = []
    written, data = b"", bytearray()
    for chunk in chunks:
        acceptor.receive_data(chunk)
        while (event := acceptor.next_event()) is not NEED_DATA:
            assert event is not PAUSED
            events += [DataSet(bytes(data)), event] if isinstance(event, InstanceFinished) else [event]
            match event:
                case AssociateRequested():
                    written += acceptor.accept()
                case StoreStarted():
                    data.clear()
                    acceptor.data_set = data.extend
                case InstanceFinished():
                    written += acceptor.respond(0)
                case EchoRequested(response) | OperationRefused(_, response) | Released(response):
                    written += response
                case Violation(_, response):
                    written += response
    return events, written


def kinds(events: Sequence[Event | DataSet]) -> list[str]:
    return [type(event).__name__ for event in events]


def established(*pdus: bytes, limits: Limits | None = None) -> tuple[list[Event | DataSet], bytes]:
    """As `run`, without the association's own event and answer."""
    events, written = run([associate_rq(), *pdus], limits)
    assert isinstance(events[0], AssociateRequested)
    length = struct.unpack_from(">L", written, 2)[0]
    return events[1:], written[6 + length :]


def test_an_association_from_request_to_release() -> None:
    events, written = established(ECHO, store(), RELEASE_RQ)
    assert kinds(events) == ["EchoRequested", "StoreStarted", "DataSet", "InstanceFinished", "Released"]
    started, header, finished = events[1:4]
    assert isinstance(started, StoreStarted)
    assert (started.sop_instance_uid, started.transfer_syntax_uid) == (SOP_INSTANCE.encode(), ExplicitVRLittleEndian)
    assert header == DataSet(DATA_SET)
    assert finished == InstanceFinished(len(DATA_SET))
    assert written.endswith(b"\x06\x00\x00\x00\x00\x04\x00\x00\x00\x00")


STREAM = associate_rq() + ECHO + store() + ECHO + store(pieces=7) + store(b"") + RELEASE_RQ


@given(st.lists(st.integers(0, len(STREAM)), max_size=30))
@settings(max_examples=200, deadline=None)
def test_the_same_bytes_cut_anywhere_give_the_same_events(cuts: list[int]) -> None:
    edges = [0, *sorted(cuts), len(STREAM)]
    assert comparable(run(STREAM[a:b] for a, b in pairwise(edges))) == comparable(run([STREAM]))


def test_the_same_bytes_one_by_one_give_the_same_events() -> None:
    assert comparable(run(bytes([byte]) for byte in STREAM)) == comparable(run([STREAM]))


def comparable(outcome: tuple[list[Event | DataSet], bytes]) -> tuple[list[object], bytes]:
    events, written = outcome
    return [type(e) if isinstance(e, AssociateRequested) else e for e in events], written


def test_several_pdvs_in_one_pdu_and_a_command_in_fragments() -> None:
    whole = command(1, data_set=True)
    events, _ = established(
        p_data(pdv(1, 1, whole[:5]), pdv(1, 1, whole[5:9]), pdv(1, 3, whole[9:]), pdv(1, 0, b"ab"), pdv(1, 2, b"c"))
    )
    assert kinds(events) == ["StoreStarted", "DataSet", "InstanceFinished"]
    assert events[1:] == [DataSet(b"abc"), InstanceFinished(3)]


@pytest.mark.parametrize("apart", [True, False], ids=["in a PDU of its own", "behind another"])
def test_an_empty_last_fragment_ends_a_data_set(apart: bool) -> None:
    """Some senders learn only then that nothing more comes."""
    first, last = pdv(1, 0, b"ab"), pdv(1, 2, b"")
    pdus = [p_data(first), p_data(last)] if apart else [p_data(first, last)]
    events, _ = established(p_data(pdv(1, 3, command(1, data_set=True))), *pdus, ECHO)
    assert events[1:3] == [DataSet(b"ab"), InstanceFinished(2)]
    assert kinds(events)[3:] == ["EchoRequested"]


def test_a_pdu_without_anything_in_it_is_passed_over() -> None:
    assert kinds(established(p_data(), ECHO)[0]) == ["EchoRequested"]


def test_each_data_set_is_measured_for_itself() -> None:
    events, _ = established(store(b"abc"), store(b"de"), p_data(pdv(1, 3, command(1, data_set=False))))
    assert [event for event in events if isinstance(event, InstanceFinished)] == [
        InstanceFinished(length) for length in (3, 2, 0)
    ]


def test_what_is_just_within_a_limit_is_taken() -> None:
    whole = command(1, data_set=True)
    pdu = p_data(pdv(1, 3, whole))
    within = Limits(max_pdu_bytes=len(pdu) - 6, max_command_bytes=len(whole))
    assert kinds(established(pdu, limits=within)[0]) == ["StoreStarted"]
    for beyond in (replace(within, max_pdu_bytes=len(pdu) - 7), replace(within, max_command_bytes=len(whole) - 1)):
        assert kinds(established(pdu, limits=beyond)[0]) == ["Violation"]


def test_the_longest_association_request_is_read() -> None:
    rq = associate_rq()
    whole, rest = divmod(MAX_ASSOCIATE_BYTES - (len(rq) - 6), 2**15)
    sizes = [2**15] * whole + [rest]
    body = rq[6:] + b"".join(struct.pack(">BBH", 0x21, 0, size - 4) + bytes(size - 4) for size in sizes)
    events, _ = run([rq[:2] + struct.pack(">L", len(body)) + body])
    assert len(body) == MAX_ASSOCIATE_BYTES
    assert kinds(events) == ["AssociateRequested"]


def established_acceptor() -> Acceptor:
    acceptor = Acceptor(SUPPORTED, Limits())
    acceptor.receive_data(associate_rq())
    acceptor.next_event()
    acceptor.accept()
    return acceptor


def test_it_tells_whether_a_pdu_or_an_instance_is_on_its_way() -> None:
    acceptor, whole = established_acceptor(), store(b"abcdef", pieces=1)

    def told(data: bytes) -> tuple[bool, bool, int]:
        acceptor.receive_data(data)
        while acceptor.next_event() not in (NEED_DATA, PAUSED):
            pass
        return acceptor.in_pdu, acceptor.in_instance, acceptor.pdus

    data_set = whole.rindex(b"\x04\0", 0, -8)  # where its last PDU begins
    assert told(b"") == (False, False, 0)
    assert told(whole[:3]) == (True, False, 0)
    assert told(whole[3:10]) == (True, False, 1)
    assert told(whole[10:data_set]) == (False, True, 1)
    assert told(whole[data_set : data_set + 8]) == (True, True, 2)
    assert told(whole[data_set + 8 :]) == (False, True, 2)
    acceptor.respond(0)
    assert not acceptor.in_instance


def test_a_caller_may_abort_or_reject_and_nothing_counts_afterwards() -> None:
    acceptor = established_acceptor()
    assert acceptor.abort() == bytes([7, 0, 0, 0, 0, 4, 0, 0, 0, 0])
    acceptor.receive_data(ECHO)
    assert acceptor.next_event() is NEED_DATA
    acceptor = Acceptor(SUPPORTED, Limits())
    acceptor.receive_data(associate_rq() + ECHO)
    acceptor.next_event()
    assert acceptor.reject(2, 3, 1) == bytes([3, 0, 0, 0, 0, 4, 0, 2, 3, 1])
    assert acceptor.next_event() is NEED_DATA
    with pytest.raises(RuntimeError, match="without an instance"):
        established_acceptor().respond(0)


def test_another_version_of_the_protocol_is_rejected() -> None:
    rq = bytearray(associate_rq())
    rq[6:8] = b"\0\2"
    ((violation,), written) = run([bytes(rq)])
    assert isinstance(violation, Violation)
    assert "0x0002" in violation.problem
    assert written == bytes([3, 0, 0, 0, 0, 4, 0, 1, 2, 2])
    rq[6:8] = b"\0\3"  # ours is among them
    assert kinds(run([bytes(rq)])[0]) == ["AssociateRequested"]


def responded(*arguments: Any, **changes: Any) -> dict[int, bytes]:
    """The elements of a C-STORE-RSP, by their number in group 0000."""
    acceptor = established_acceptor()
    acceptor.receive_data(p_data(pdv(1, 3, command(1, data_set=False, **changes))))
    while acceptor.next_event() is not PAUSED:
        pass
    response = acceptor.respond(*arguments)
    kind, length, of_pdv, context_id, header = struct.unpack_from(">BxLLBB", response)
    assert (kind, length, of_pdv, context_id, header) == (4, len(response) - 6, len(response) - 10, 1, 3)
    return elements_of(bytearray(response[12:]))


def test_a_response_has_what_it_has_to_and_no_more() -> None:
    uid = SOP_INSTANCE.encode() + b"\0"  # padded
    sop_class = CTImageStorage.encode() + b"\0" * (len(CTImageStorage) % 2)
    wanted = {0x0002: sop_class, 0x0100: b"\x01\x80", 0x0120: b"\x07\0", 0x0800: b"\x01\x01", 0x0900: b"\0\0"}
    elements = responded(0)
    length = elements.pop(0)
    assert elements == wanted | {0x1000: uid}
    assert int.from_bytes(length, "little") == sum(8 + len(value) for value in elements.values())
    refused = responded(0xC000, "ä" * 99, 0x0020000D)
    assert (refused[0x0900], refused[0x0901], refused[0x0902]) == (b"\0\xc0", b"\x20\0\x0d\0", b"?" * 64)
    assert 0x0002 not in responded(0, sop_class="")


def test_a_large_data_set_passes_through() -> None:
    acceptor = Acceptor(SUPPORTED, Limits())
    acceptor.receive_data(associate_rq())
    acceptor.next_event()
    acceptor.accept()
    acceptor.receive_data(p_data(pdv(1, 3, command(1, data_set=True))))
    assert isinstance(acceptor.next_event(), StoreStarted)
    passed: list[int] = []
    acceptor.data_set = lambda fragment: passed.append(len(fragment))
    for n in range(200):
        acceptor.receive_data(p_data(pdv(1, 2 if n == 199 else 0, bytes(65536))))
        event = acceptor.next_event()
        assert (event is NEED_DATA) is (n < 199)
        assert len(acceptor._buffer) <= 65536 + 12
    assert (event, sum(passed)) == (InstanceFinished(200 * 65536), 200 * 65536)


def test_nothing_is_read_on_while_an_answer_is_owed() -> None:
    acceptor = Acceptor(SUPPORTED, Limits())
    acceptor.receive_data(associate_rq() + store() + store())
    assert isinstance(acceptor.next_event(), AssociateRequested)
    assert acceptor.next_event() is PAUSED
    acceptor.accept()
    assert kinds([acceptor.next_event() for _ in range(2)]) == ["StoreStarted", "InstanceFinished"]
    assert acceptor.next_event() is PAUSED
    acceptor.respond(0)
    assert isinstance(acceptor.next_event(), StoreStarted)


def test_response_echoes_message_id_and_uids_and_carries_the_reason() -> None:
    acceptor = Acceptor(SUPPORTED, Limits())
    acceptor.receive_data(associate_rq() + store())
    acceptor.next_event()
    acceptor.accept()
    while not isinstance(acceptor.next_event(), InstanceFinished):
        pass
    response = acceptor.respond(0xC000, "StudyInstanceUID is missing", 0x0020000D)
    assert element(0x0100, b"\x01\x80") in response
    assert element(0x0120, struct.pack("<H", 7)) in response
    assert element(0x0900, b"\x00\xc0") in response
    assert element(0x0901, b"\x20\x00\x0d\x00") in response
    assert b"StudyInstanceUID is missing" in response
    assert SOP_INSTANCE.encode() in response


@pytest.mark.parametrize("request_", [ECHO, store() * 3])
@pytest.mark.parametrize("maximum_length", [0, 7, 32, 128, 16384])
def test_response_is_cut_to_what_the_peer_takes(maximum_length: int, request_: bytes) -> None:
    _, written = run([associate_rq(maximum_length=maximum_length) + request_])
    at = 6 + struct.unpack_from(">L", written, 2)[0]
    message, lengths, last = b"", [], 0
    while at < len(written):
        kind, length, _, context_id, last = struct.unpack_from(">BxLLBB", written, at)
        assert (kind, context_id) == (4, 3 if request_ == ECHO else 1)
        lengths.append(length)
        message += written[at + 12 : at + 6 + length]
        at += 6 + length
    assert last == 3
    assert max(lengths) <= (maximum_length or MAXIMUM_LENGTH)
    assert message.count(element(0x0900, b"\0\0")) == (1 if request_ == ECHO else 3)


@pytest.mark.parametrize(
    ("pdu", "status"),
    [
        (p_data(pdv(1, 3, command(0x20, data_set=True)), pdv(1, 2, b"query")), 0x0211),  # C-FIND
        (p_data(pdv(1, 3, command(0x0130, data_set=False))), 0x0211),  # N-ACTION
        (p_data(pdv(3, 3, command(1, data_set=True)), pdv(3, 2, b"pixels")), 0x0122),  # C-STORE as Verification
        (p_data(pdv(1, 3, command(0x30, data_set=False))), 0x0211),  # C-ECHO as CT
    ],
)
def test_operation_that_is_not_served_gets_its_refusal_and_the_association_goes_on(pdu: bytes, status: int) -> None:
    events, written = established(pdu, ECHO)
    assert kinds(events) == ["OperationRefused", "EchoRequested"]
    assert element(0x0900, struct.pack("<H", status)) in written


def test_store_without_a_data_set_waits_for_its_answer_as_any_other() -> None:
    events, written = established(p_data(pdv(1, 3, command(1, data_set=False))), ECHO)
    assert kinds(events) == ["StoreStarted", "DataSet", "InstanceFinished", "EchoRequested"]
    assert element(0x0100, b"\x01\x80") in written


def test_cancel_of_nothing_is_ignored() -> None:
    assert kinds(established(p_data(pdv(1, 3, command(0x0FFF, data_set=False))), ECHO)[0]) == ["EchoRequested"]


def test_abort_ends_it_without_an_answer() -> None:
    assert established(ABORT) == ([Aborted()], b"")
    assert run([ABORT]) == ([Aborted()], b"")


def test_release_in_the_middle_of_an_instance_finishes_nothing() -> None:
    started = p_data(pdv(1, 3, command(1, data_set=True))) + p_data(pdv(1, 0, b"first part"))
    assert kinds(established(started + RELEASE_RQ)[0]) == ["StoreStarted", "Released"]


@pytest.mark.parametrize(
    ("pdu", "reason"),
    [
        (b"GET / HTTP/1.1\r\n", UNRECOGNIZED_PDU),
        (b"\x00" * 10, UNRECOGNIZED_PDU),
        (b"\x06\x00\x00\x00\x00\x04\x00\x00\x00\x00", UNEXPECTED_PDU),
        (associate_rq(), UNEXPECTED_PDU),
        (struct.pack(">BBL", 4, 0, 0xFFFFFFFF), INVALID_PDU_PARAMETER),
        (struct.pack(">BBL", 5, 0, 0xFFFFFFFF), INVALID_PDU_PARAMETER),
        (p_data(b"abc"), INVALID_PDU_PARAMETER),
        (p_data(struct.pack(">LBB", 0, 1, 3)), INVALID_PDU_PARAMETER),
        (p_data(struct.pack(">LBB", 0xFFFFFFFF, 1, 3)), INVALID_PDU_PARAMETER),
        (p_data(pdv(5, 3, command(1, data_set=True))), INVALID_PDU_PARAMETER),  # context not accepted
        (p_data(pdv(1, 2, b"data")), INVALID_PDU_PARAMETER),
        (p_data(pdv(1, 3, command(1, data_set=True)), pdv(1, 3, b"")), INVALID_PDU_PARAMETER),
        (p_data(pdv(1, 3, command(1, data_set=True)), pdv(3, 2, b"x")), INVALID_PDU_PARAMETER),
        (p_data(pdv(1, 3, command(0x8001, data_set=False))), INVALID_PDU_PARAMETER),
        (p_data(pdv(1, 3, b"\0" * 7)), INVALID_PDU_PARAMETER),
        (p_data(pdv(1, 3, element(0x0100, b"\x01\0"))), INVALID_PDU_PARAMETER),
        (p_data(pdv(1, 3, command(1, data_set=True)[:-3])), INVALID_PDU_PARAMETER),
    ],
)
def test_what_breaks_the_protocol_is_aborted_by_the_provider(pdu: bytes, reason: int) -> None:
    events, written = established(pdu, ECHO)
    (violation,) = [event for event in events if isinstance(event, Violation)]
    assert events[-1] is violation
    assert written.endswith(bytes([7, 0, 0, 0, 0, 4, 0, 0, 2, reason]))


@pytest.mark.parametrize(
    "pdu",
    [
        struct.pack(">BBL", 1, 0, 0xFFFFFFFF),
        struct.pack(">BBL", 1, 0, 2**18 + 1),
        ECHO,
        RELEASE_RQ,
        associate_rq()[:2] + struct.pack(">L", 100) + bytes(100),
    ],
)
def test_what_comes_instead_of_an_association_request_is_aborted_before_it_is_buffered(pdu: bytes) -> None:
    events, _ = run([pdu])
    assert kinds(events) == ["Violation"]


@pytest.mark.parametrize("item", [0x21, 0x50], ids=hex)
def test_association_request_of_countless_items_is_aborted_before_it_is_read(item: int) -> None:
    rq = associate_rq()
    body = rq[6:] + bytes([item, 0, 0, 0]) * 50_000
    events, _ = run([rq[:2] + struct.pack(">L", len(body)) + body])
    assert kinds(events) == ["Violation"]
    assert "items" in str(events[0])


def test_command_set_beyond_its_limit_is_aborted() -> None:
    endless = (p_data(pdv(1, 1, bytes(1000))) for _ in range(100))
    events, _ = established(*endless, limits=Limits(max_command_bytes=4096))
    assert kinds(events) == ["Violation"]
    assert "max_command_bytes=4096" in str(events[0])


def test_nothing_counts_after_the_end() -> None:
    acceptor = Acceptor(SUPPORTED, Limits())
    acceptor.receive_data(b"nonsense, and more than six bytes of it")
    assert isinstance(acceptor.next_event(), Violation)
    acceptor.receive_data(associate_rq() + ECHO)
    assert acceptor.next_event() is NEED_DATA
    assert acceptor.state is State.STA13


@given(st.binary(max_size=400))
@settings(max_examples=300, deadline=None)
def test_no_bytes_raise(data: bytes) -> None:
    run([data])
    established(data)
    established(p_data(pdv(1, 3, data)))


@given(st.data())
@settings(max_examples=300, deadline=None)
def test_no_mutation_of_a_real_stream_raises(data: st.DataObject) -> None:
    stream = bytearray(STREAM)
    for _ in range(data.draw(st.integers(1, 8))):
        stream[data.draw(st.integers(0, len(stream) - 1))] = data.draw(st.integers(0, 255))
    run([bytes(stream)])


@pytest.mark.parametrize("first", range(0, len(AllStoragePresentationContexts), 100))
def test_every_storage_class_in_every_transfer_syntax_is_accepted(first: int) -> None:
    for syntax in ALL_TRANSFER_SYNTAXES:
        proposed = [
            build_context(str(c.abstract_syntax), syntax) for c in AllStoragePresentationContexts[first : first + 100]
        ]
        _, written = run([associate_rq(proposed)])
        answer = A_ASSOCIATE_AC()
        answer.decode(written)
        results = answer.to_primitive().presentation_context_definition_results_list
        assert [(cx.result, cx.transfer_syntax) for cx in results] == [(0, [syntax])] * len(proposed)


def windowed(operations: int) -> Acceptor:
    acceptor = Acceptor(SUPPORTED, Limits(max_operations=16))
    acceptor.receive_data(with_window(associate_rq(), operations))
    acceptor.next_event()
    acceptor.accept()
    return acceptor


def numbered(message_id: int) -> bytes:
    """A C-STORE with that message ID."""
    return p_data(pdv(1, 3, command(1, data_set=True, message_id=message_id))) + p_data(pdv(1, 2, b"ab"))


def test_as_many_stores_as_the_window_allows_wait_for_answers_which_go_out_in_any_order() -> None:
    acceptor = windowed(3)
    acceptor.receive_data(b"".join(map(numbered, range(1, 5))))
    started: list[StoreStarted] = []
    while (event := acceptor.next_event()) is not PAUSED:
        started += [event] if isinstance(event, StoreStarted) else []
    assert [int.from_bytes(one.message_id, "little") for one in started] == [1, 2, 3]
    for one in (started[1], started[0]):
        assert element(0x0120, one.message_id) in acceptor.respond(0, store=one)
    assert kinds([acceptor.next_event() for _ in range(2)]) == ["StoreStarted", "InstanceFinished"]
    assert acceptor.next_event() is NEED_DATA


def test_a_release_waits_until_every_store_is_answered() -> None:
    acceptor = windowed(0)
    acceptor.receive_data(numbered(1) + ECHO + numbered(2) + RELEASE_RQ)
    events = [acceptor.next_event() for _ in range(5)]
    assert kinds(events) == ["StoreStarted", "InstanceFinished", "EchoRequested", "StoreStarted", "InstanceFinished"]
    for _ in range(2):
        assert acceptor.next_event() is PAUSED
        acceptor.respond(0)
    assert kinds([acceptor.next_event()]) == ["Released"]
