"""An A-ASSOCIATE-RQ is read as stock pynetdicom reads it; whatever it holds, it is read or Unreadable."""

import struct
from contextlib import suppress
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydicom.uid import UID, CTImageStorage, ExplicitVRLittleEndian, JPEG2000Lossless
from pynetdicom import ALL_TRANSFER_SYNTAXES, build_context, build_role, sop_class
from pynetdicom.pdu import A_ASSOCIATE_AC, A_ASSOCIATE_RQ
from pynetdicom.pdu_primitives import (
    A_ASSOCIATE,
    AsynchronousOperationsWindowNegotiation,
    ImplementationClassUIDNotification,
    ImplementationVersionNameNotification,
    MaximumLengthNotification,
    SCP_SCU_RoleSelectionNegotiation,
    SOPClassExtendedNegotiation,
    UserIdentityNegotiation,
)
from pynetdicom.presentation import negotiate_unrestricted

from bench.interop import results_of
from bench.odd_associations import CT, LENGTHS, Odd, context, item, odd_associations, of_user, request
from bench.rig.senders import associate_rq
from dicom.associate import RESERVED, Titles, Unreadable, accept, escaped, read
from dicom.sop_classes import WITHOUT_PATIENT, is_stored
from tests.rig.streams import with_window

SUPPORTED = {"1.2.840.10008.1.1": [str(uid) for uid in ALL_TRANSFER_SYNTAXES]}
ABSTRACT = [
    *("1.2.840.10008.1.1", "1.2.840.10008.5.1.4.1.1.2", "1.2.840.10008.5.1.4.1.1.4", "1.2.840.10008.5.1.4.1.1.88.11"),
    *("1.2.840.10008.5.1.4.1.2.2.1", "1.2.840.10008.1.20.1", "1.2.826.0.1.3680043.10.99.1"),
]
SYNTAXES = [str(uid) for uid in ALL_TRANSFER_SYNTAXES[:6]]
TITLE = st.text(st.sampled_from("ABCxyz019_- ."), min_size=1, max_size=16).filter(str.strip)


@st.composite
def well_formed(draw: st.DrawFn) -> bytes:
    """Encoded by pynetdicom."""
    primitive = A_ASSOCIATE()
    primitive.application_context_name = "1.2.840.10008.3.1.1.1"
    primitive.calling_ae_title, primitive.called_ae_title = draw(TITLE), draw(TITLE)
    proposed = st.tuples(st.sampled_from(ABSTRACT), st.lists(st.sampled_from(SYNTAXES), min_size=1, unique=True))
    contexts = [build_context(uid, [*syntaxes]) for uid, syntaxes in draw(st.lists(proposed, min_size=1, max_size=9))]
    for n, cx in enumerate(contexts):
        cx.context_id = 2 * n + 1
    primitive.presentation_context_definition_list = contexts
    length, implementation = MaximumLengthNotification(), ImplementationClassUIDNotification()
    length.maximum_length_received = draw(st.integers(0, 2**32 - 1))
    implementation.implementation_class_uid = "1.2.3"
    roles = [build_role(uid, *draw(st.sampled_from([(True, False), (False, True), (True, True)]))) for uid in ABSTRACT]
    primitive.user_information = [
        length,
        implementation,
        *draw(st.lists(st.sampled_from([*roles, *OTHER_ITEMS]), unique_by=id, max_size=6)),
    ]
    pdu = A_ASSOCIATE_RQ()
    pdu.from_primitive(primitive)
    return pdu.encode()


def _other_items() -> list[Any]:
    version, window = ImplementationVersionNameNotification(), AsynchronousOperationsWindowNegotiation()
    version.implementation_version_name = "V1"
    window.maximum_number_operations_invoked = window.maximum_number_operations_performed = 5
    extended, identity = SOPClassExtendedNegotiation(), UserIdentityNegotiation()
    extended.sop_class_uid, extended.service_class_application_information = CTImageStorage, b"\x02\x00\x03"
    identity.user_identity_type, identity.primary_field = 1, b"someone"
    return [version, window, extended, identity]


OTHER_ITEMS = _other_items()


@given(well_formed())
@settings(max_examples=200, deadline=None)
def test_a_well_formed_request_is_read_and_answered_as_stock_pynetdicom_does(pdu: bytes) -> None:
    decoded = A_ASSOCIATE_RQ()
    decoded.decode(pdu)
    theirs, ours = decoded.to_primitive(), read(pdu)
    assert ours.titles.calling == str(theirs.calling_ae_title).strip()
    assert ours.titles.called == str(theirs.called_ae_title).strip()
    assert ours.maximum_length == theirs.maximum_length_received
    assert ours.protocol_version == decoded.protocol_version
    proposed = theirs.presentation_context_definition_list
    assert [tuple(context) for context in ours.contexts] == [
        (cx.context_id, cx.abstract_syntax, cx.transfer_syntax) for cx in proposed
    ]
    items = [item for item in theirs.user_information if isinstance(item, SCP_SCU_RoleSelectionNegotiation)]
    roles = {UID(str(item.sop_class_uid)): (item.scu_role, item.scp_role) for item in items}
    assert ours.roles == roles

    supported = [build_context(uid, [*syntaxes]) for uid, syntaxes in SUPPORTED.items()]
    contexts, answered = negotiate_unrestricted(proposed, supported, roles)
    answer = A_ASSOCIATE_AC()
    answer.decode(accept(ours, SUPPORTED).pdu)
    said = answer.to_primitive()
    assert [
        (cx.context_id, cx.result, cx.transfer_syntax) for cx in said.presentation_context_definition_results_list
    ] == [(cx.context_id, cx.result, cx.transfer_syntax) for cx in contexts]
    assert [
        (item.sop_class_uid, item.scu_role, item.scp_role)
        for item in said.user_information
        if isinstance(item, SCP_SCU_RoleSelectionNegotiation)
    ] == [(item.sop_class_uid, item.scu_role, item.scp_role) for item in answered]


@given(well_formed(), st.data())
@settings(max_examples=300, deadline=None)
def test_a_request_cut_or_mutated_is_read_and_can_be_answered_or_is_unreadable(pdu: bytes, data: st.DataObject) -> None:
    said = bytearray(pdu[: data.draw(st.integers(0, len(pdu)))] if data.draw(st.booleans()) else pdu)
    for _ in range(data.draw(st.integers(0, 6)) if said else 0):
        said[data.draw(st.integers(0, len(said) - 1))] = data.draw(st.integers(0, 255))
    with suppress(Unreadable):
        answer = accept(read(bytes(said)), SUPPORTED).pdu
        assert len(answer) == 6 + struct.unpack_from(">L", answer, 2)[0]
        assert answer[RESERVED] == bytes(said)[RESERVED]


ODD = [odd for odd in odd_associations() if not odd.name.startswith("mutation")]


@pytest.mark.parametrize("odd", [odd for odd in ODD if odd.refused != LENGTHS], ids=lambda odd: odd.name)
def test_only_what_has_a_reason_is_not_accepted_whole(odd: Odd) -> None:
    asked = read(odd.request)
    results = dict(results_of(accept(asked, SUPPORTED).pdu[6:]))
    assert [*results] == [context.context_id for context in asked.contexts]
    assert any(results.values()) == (bool(odd.refused) and "ALLOWED" not in odd.refused and "version" not in odd.name)


@pytest.mark.parametrize("odd", [odd for odd in ODD if odd.refused == LENGTHS], ids=lambda odd: odd.name)
def test_only_lengths_that_do_not_fit_are_unreadable(odd: Odd) -> None:
    with pytest.raises(Unreadable, match=r"bytes"):
        read(odd.request)


@pytest.mark.parametrize(
    ("sent", "title", "shown"),
    [
        (b"CT1".ljust(16), "CT1", "CT1"),
        (b"CT1" + bytes(13), "CT1", "CT1" + r"\x00" * 13),
        (b"CT1\0garbage".ljust(16), "CT1", r"CT1\x00garbage"),
        (b"  CT 1".ljust(16), "CT 1", "  CT 1"),
        (b"R\xf6ntgen".ljust(16), "Röntgen", r"R\xf6ntgen"),
        (b"\x1b[2J".ljust(16), "\ufffd[2J", r"\x1b[2J"),
        (b" " * 16, "", ""),
        (bytes(16), "", r"\x00" * 16),
    ],
)
def test_a_title_is_what_stands_before_a_nul_without_padding_and_shows_as_sent(
    sent: bytes, title: str, shown: str
) -> None:
    titles = Titles.of(request(calling=sent, called=sent))
    assert (titles.calling, titles.called) == (title, title)
    assert escaped(titles.calling_as_sent) == shown


def test_the_answer_repeats_the_reserved_bytes_as_sent() -> None:
    asked = request(called=b"\xff\0junk", calling=b"R\xf6", more_reserved=bytes(range(32)))
    assert accept(read(asked), SUPPORTED).pdu[RESERVED] == asked[RESERVED]


def test_of_two_contexts_with_one_id_the_first_stands() -> None:
    (odd,) = [odd for odd in ODD if odd.name == "context ID 1 twice"]
    assert accept(read(odd.request), SUPPORTED).accepted == {1: (CTImageStorage, ExplicitVRLittleEndian)}


@pytest.mark.parametrize("roles", [b"\0\0", b"\1", b""])
def test_a_role_selection_of_no_role_is_not_answered(roles: bytes) -> None:
    asked = of_user(item(0x54, struct.pack(">H", len(CT)) + CT + roles))
    assert read(asked).roles == {}


@pytest.mark.parametrize("length", [64, 128, 129, 65_520])
def test_an_answer_can_be_made_however_long_the_uids_are(length: int) -> None:
    uids = [f"9.{n}.".ljust(length, "1").encode() for n in range(256 if length < 1000 else 1)]
    roles = b"".join(item(0x50, item(0x54, struct.pack(">H", len(uid)) + uid + b"\1\1")) for uid in uids)
    asked = read(request(*(context(n, uid, b"1.2") for n, uid in enumerate(uids)), roles))
    answer = accept(asked, SUPPORTED)
    assert len(answer.accepted) == len(uids)
    assert len(asked.roles) == (len(uids) if length <= 128 else 0)


# --- what is stored -------------------------------------------------------------------------------------------


def known(table: str) -> set[str]:
    return {str(uid) for uid in getattr(sop_class, table).values()}


def test_every_storage_class_that_pynetdicom_knows_is_stored() -> None:
    assert [uid for uid in known("_STORAGE_CLASSES") if not is_stored(uid)] == []


@pytest.mark.parametrize(
    "table",
    [
        name
        for name in vars(sop_class)
        if name.endswith("_CLASSES") and name not in ("_STORAGE_CLASSES", "_SERVICE_CLASSES")
    ],
)
def test_no_other_service_that_pynetdicom_knows_is_stored(table: str) -> None:
    assert [uid for uid in known(table) if is_stored(uid)] == []


def test_non_patient_objects_are_those_of_annex_gg() -> None:
    assert known("_NON_PATIENT_OBJECT_CLASSES") == WITHOUT_PATIENT


@pytest.mark.parametrize(
    ("uid", "stored"),
    [
        ("1.2.826.0.1.3680043.10.99.1", True),  # private
        ("CT.Image", True),  # whose, nobody knows
        ("1.2.840.10008.5.1.4.1.1.999", True),  # newer than our tables
        ("1.2.840.10008.5.1.4.1.1.12.77", True),  # retired, without a name
        ("1.2.840.10008.5.1.4.34.7", True),  # RT Beams Delivery Instruction Storage
        ("1.2.840.10008.5.1.4.999", False),
        ("1.2.840.10008.5.1.1.27", True),  # Stored Print Storage, retired
        ("1.2.840.10008.1.3.10", False),  # Media Storage Directory
        ("1.2.840.10008.1.20.1", False),  # Storage Commitment
        ("1.2.840.10008.4.2", False),  # Storage Service Class
        (ExplicitVRLittleEndian, False),
        (JPEG2000Lossless, False),
        ("", False),
    ],
)
def test_a_uid_is_stored_by_what_it_is_and_where_it_stands(uid: str, stored: bool) -> None:
    assert is_stored(uid) is stored


@pytest.mark.parametrize(("asked", "granted"), [(2, 2), (16, 16), (17, 16), (65535, 16), (0, 16)])
def test_a_window_is_granted_up_to_the_limit_and_never_without_one(asked: int, granted: int) -> None:
    answer = accept(read(with_window(associate_rq(), asked)), SUPPORTED, max_operations=16)
    decoded = A_ASSOCIATE_AC()
    decoded.decode(answer.pdu)
    (window,) = [
        item
        for item in decoded.to_primitive().user_information
        if isinstance(item, AsynchronousOperationsWindowNegotiation)
    ]
    assert answer.operations == granted
    assert (window.maximum_number_operations_invoked, window.maximum_number_operations_performed) == (granted, 1)


@pytest.mark.parametrize(
    "items",
    [b"", item(0x53, b"\0\5"), item(0x53, b"\0\5\0\5\0"), item(0x53, b"\0\1\0\1")],
    ids=["none", "short", "long", "of one"],
)
def test_without_a_readable_window_one_operation_is_in_flight(items: bytes) -> None:
    answer = accept(read(of_user(items)), SUPPORTED, max_operations=16)
    assert answer.operations == 1
    assert b"S\0\0\4" not in answer.pdu
