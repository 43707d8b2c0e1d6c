"""docs/conformance.md says of the code what the code says."""

import re
from pathlib import Path

import pynetdicom
import pytest
from pydicom.charset import python_encoding
from pydicom.dataset import Dataset
from pynetdicom import AE
from pynetdicom.pdu import A_ASSOCIATE_AC
from pynetdicom.presentation import build_context
from pynetdicom.sop_class import (  # type: ignore[attr-defined]
    StorageCommitmentPushModel,
    StudyRootQueryRetrieveInformationModelFind,
    Verification,
)

from api.dicomweb.request import MAX_LIMIT, UNSUPPORTED
from bench.odd_associations import LENGTHS, NO_CONTEXT, NO_PATIENT, NO_STORAGE, NO_SYNTAX, odd_associations
from bench.odd_data_sets import NO_IDENTITY, Odd, odd_data_sets
from bench.rig.senders import associate_rq
from common.settings import GatewaySettings, variable
from dicom import associate, header, statuses, upper_layer
from dicom.upper_layer import Acceptor, AssociateRequested, Limits
from storage.search import KEYS, Level
from tests.rig.factories import RECEIVED_AT, encode, make_dataset

ROOT = Path(__file__).parents[2]
TEXT = (ROOT / "docs" / "conformance.md").read_text()
DEFAULTS = {variable(GatewaySettings, name): field.default for name, field in GatewaySettings.model_fields.items()}


def row(beginning: str) -> list[str]:
    """The cells of the one table row that begins so."""
    (found,) = re.findall(rf"^\| {re.escape(beginning)} \|(.*)\|$", TEXT, re.MULTILINE)
    return [cell.strip() for cell in str(found).split("|")]


def names(cell: str) -> set[str]:
    return set(re.split(r",\s*", cell))


def chapter(heading: str) -> str:
    return TEXT.partition(f"{heading}\n")[2].partition("\n#")[0]


def test_chapters_are_those_of_annex_a() -> None:
    numbers = re.findall(r"^#+ (A\.[\d.]*\d) ", TEXT, re.MULTILINE)
    assert [n for n in numbers if n.count(".") == 1] == [f"A.{n}" for n in range(10)]
    assert [n for n in numbers if n.startswith("A.4.") and n.count(".") == 2] == ["A.4.1", "A.4.2", "A.4.3", "A.4.4"]


def test_implementation_is_the_one_that_is_announced() -> None:
    assert pynetdicom.PYNETDICOM_IMPLEMENTATION_UID in row("Implementation Class UID")[0]
    assert row("Implementation Version Name") == [pynetdicom.PYNETDICOM_IMPLEMENTATION_VERSION]
    announced = re.findall(r"^\| Maximum PDU length announced \| (\d+)", TEXT, re.MULTILINE)
    assert announced == [str(associate.MAXIMUM_LENGTH), str(AE().maximum_pdu_size)]
    assert f'version = "{row("Version")[0]}"' in (ROOT / "pyproject.toml").read_text()


def test_statuses_are_those_of_the_code() -> None:
    stated = {int(code, 16) for code in re.findall(r"^\| 0x([0-9A-F]{4}) \|", TEXT, re.MULTILINE)}
    of_scp = {
        statuses.SUCCESS,
        statuses.OUT_OF_RESOURCES,
        statuses.DATA_SET_MISMATCH,
        statuses.CANNOT_UNDERSTAND,
        statuses.PROCESSING_FAILURE,
    }
    assert stated == of_scp | {statuses.SOP_CLASS_NOT_SUPPORTED, statuses.UNRECOGNIZED_OPERATION}


def test_rejections_are_those_of_the_code() -> None:
    stated = {tuple(map(int, found)) for found in re.findall(r"\| (\d), (\d), (\d): ", TEXT)}
    assert stated == {
        statuses.CALLING_AE_TITLE_NOT_RECOGNIZED,
        statuses.CALLED_AE_TITLE_NOT_RECOGNIZED,
        statuses.LOCAL_LIMIT_EXCEEDED,
        upper_layer.PROTOCOL_VERSION_NOT_SUPPORTED,
    }


def test_parameters_have_their_defaults() -> None:
    table = re.findall(r"^\| `(GATEWAY_\w+)` \| (\S+) \|$", TEXT, re.MULTILINE)
    assert len(table) >= 15
    assert dict(table) == {
        name: f"{DEFAULTS[name]:g}" if isinstance(DEFAULTS[name], float) else str(DEFAULTS[name]) for name, _ in table
    }


def test_kept_attributes_are_those_of_the_header() -> None:
    kept = chapter("### A.9.1 Attributes that are kept")
    rows = {
        level.strip(): names(cell.strip()) for level, cell in re.findall(r"^\| (.+?) \| (.+) \|$", kept, re.MULTILINE)
    }
    for level, table in (
        ("instance", header.INSTANCE_LEVEL),
        ("series and study", header.SERIES_LEVEL),
        ("of Request Attributes Sequence", header.REQUEST_ATTRIBUTES),
        ("hints of how many images there are", header.COUNTS),
    ):
        assert rows[level] == {keyword for keyword, _ in table.values()}


def test_character_sets_are_those_that_can_be_decoded() -> None:
    stated = names(
        re.sub(r"\s+", " ", chapter("## A.7 Support of character sets"))
        .partition("Defined terms: ")[2]
        .partition(".")[0]
    )
    assert stated == set(python_encoding) - {"", "ISO 2022 58"}  # pydicom's own, for what some write
    assert "ISO_IR 203" not in python_encoding


@pytest.mark.parametrize("level", Level)
def test_search_keys_are_those_of_qido(level: Level) -> None:
    section = chapter("#### A.4.2.3 DICOMweb origin server: QIDO-RS")
    (cell,) = re.findall(rf"^\| {level.name.lower()} \| (.+) \|$", section, re.MULTILINE)
    assert names(cell) == {key for key, lowest in KEYS.items() if lowest == level}
    assert f"`limit` (at most {MAX_LIMIT})" in section
    assert names(row("not supported")[0].partition(":")[0].replace("`", "")) == set(UNSUPPORTED)


def test_contexts_are_accepted_and_rejected_as_stated() -> None:
    private, unknown_syntax = "1.2.826.0.1.3680043.8.498.7.1", "1.2.826.0.1.3680043.8.498.7.2"
    contexts = [
        build_context(Verification),
        build_context("1.2.840.10008.5.1.4.1.1.2", [unknown_syntax, "1.2.840.10008.1.2"]),
        build_context(private),
        build_context(StudyRootQueryRetrieveInformationModelFind),
        build_context(StorageCommitmentPushModel),
    ]
    ae = AE()
    ae.add_supported_context(Verification, pynetdicom.ALL_TRANSFER_SYNTAXES)
    acceptor = Acceptor(ae.supported_contexts, Limits())
    acceptor.receive_data(associate_rq(contexts, called="ANYTHING"))
    assert isinstance(acceptor.next_event(), AssociateRequested)
    answer = A_ASSOCIATE_AC()
    answer.decode(acceptor.accept())
    primitive = answer.to_primitive()
    results = primitive.presentation_context_definition_results_list
    assert [context.result for context in results] == [0, 0, 0, 3, 3]
    assert results[1].transfer_syntax == [unknown_syntax]


# --- odd forms --------------------------------------------------------------------------------------------------

ODD_FORMS = "### A.9.3 Odd forms that are taken"


def stated_forms(table: str) -> dict[str, list[str]]:
    """By what becomes of them, the forms that a table names."""
    rows = chapter(ODD_FORMS).partition(f"| {table}")[2].partition("\n\n")[0]
    return {told: forms.split("; ") for told, forms in re.findall(r"^\| ([^-].*?) \| (.*) \|$", rows, re.MULTILINE)}


def test_association_requests_fare_as_stated() -> None:
    stated = stated_forms("association request")
    forms = {odd.name: odd for odd in odd_associations() if not odd.name.startswith("mutation")}
    assert sorted(name for names in stated.values() for name in names) == sorted(forms)
    for told, names in stated.items():
        for name in names:
            odd = forms[name]
            assert told == ("accepted" if not odd.refused else f"not, or not all of it: {odd.refused}")
            if odd.refused == LENGTHS:
                with pytest.raises(associate.Unreadable):
                    associate.read(odd.request)
                continue
            request = associate.read(odd.request)
            accepted = associate.accept(request, {Verification: pynetdicom.ALL_TRANSFER_SYNTAXES}).accepted
            is_whole = len(accepted) == len(request.contexts)
            assert is_whole is (odd.refused not in (NO_CONTEXT, NO_PATIENT, NO_STORAGE, NO_SYNTAX)), name


def said_of(odd: Odd) -> str:
    try:
        instance = header.read_instance(
            odd.data,
            transfer_syntax_uid=odd.transfer_syntax,
            calling_ae_title="AE",
            peer_address="::1",
            received_at=RECEIVED_AT,
        )
    except header.HeaderError:
        return f"0xC000: {NO_IDENTITY}"
    found = instance.attributes
    assert all("\\".join(found[keyword]) == value for keyword, value in odd.holds.items()), odd.name
    return "; ".join(header.with_class_of_command(instance, odd.sop_class_of_command).doubtful) or "nothing"


def test_of_data_sets_is_said_what_is_stated() -> None:
    expected: dict[str, list[str]] = {}
    for odd in odd_data_sets():
        if not odd.mutated:
            expected.setdefault(said_of(odd), []).append(odd.name)
    assert stated_forms("data set") == expected


def test_items_of_explicit_vr_in_implicit_ones_are_found_by_pydicom_and_said() -> None:
    ds = make_dataset()
    ds.ReferencedImageSequence = [Dataset()]
    ds.ReferencedImageSequence[0].ReferencedSOPInstanceUID = "1.2.3"
    data = encode(ds, implicit=True)
    inner = encode(ds.ReferencedImageSequence[0], implicit=True)
    sent = data.replace(inner, encode(ds.ReferencedImageSequence[0]))
    assert len(sent) == len(data)
    instance = header.read_instance(
        sent,
        transfer_syntax_uid="1.2.840.10008.1.2",
        calling_ae_title="AE",
        peer_address="::1",
        received_at=RECEIVED_AT,
    )
    assert instance.text("PatientID") == "P1"
