"""Decide which abstract syntaxes are storage of patients' images and documents (PS3.6 Annex A, PS3.4 Annex B)."""

from pydicom import uid
from pydicom.config import IGNORE

OF_DICOM = "1.2.840.10008."
STORAGE = "1.2.840.10008.5.1.4.1.1."  # the UIDs of all storage SOP Classes since 1993 begin with this
WITHOUT_PATIENT = {
    uid.HangingProtocolStorage,
    uid.ColorPaletteStorage,
    uid.GenericImplantTemplateStorage,
    uid.ImplantAssemblyTemplateStorage,
    uid.ImplantTemplateGroupStorage,
    uid.CTDefinedProcedureProtocolStorage,
    uid.XADefinedProcedureProtocolStorage,
    uid.ProtocolApprovalStorage,
    uid.InventoryStorage,
}
"""Non-Patient Object Storage (PS3.4 Annex GG). These objects belong to no patient, study or series."""
NOT_STORAGE = ("Storage Commitment", "Media Storage Directory")  # names that contain "Storage" but are something else


def is_stored(abstract_syntax: str) -> bool:
    """Tell if objects of an abstract syntax are accepted.

    1. A private one is always accepted; an object without a patient's series is refused when it comes.
    2. One that PS3.6 knows is accepted if it is a SOP Class for storage of patients' objects.
    3. One that our tables do not know (newer or older ones) is accepted if its UID begins as those of storage do.
    """
    if not abstract_syntax.startswith(OF_DICOM):
        return bool(abstract_syntax)
    known = uid.UID(abstract_syntax, IGNORE)
    if known.type and known.name:
        named = "Storage" in known.name and not known.name.startswith(NOT_STORAGE)
        return known.type == "SOP Class" and named and abstract_syntax not in WITHOUT_PATIENT
    return abstract_syntax.startswith(STORAGE)
