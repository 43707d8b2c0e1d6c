"""Which abstract syntaxes are images and documents of patients, sent to be stored (PS3.6 Annex A, PS3.4 Annex B)."""

from pydicom import uid
from pydicom.config import IGNORE

OF_DICOM = "1.2.840.10008."
STORAGE = "1.2.840.10008.5.1.4.1.1."  # where PS3.6 has put storage SOP classes since 1993
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
"""Non-Patient Object Storage (PS3.4 Annex GG): of no patient, study or series, so nothing that is counted here."""
NOT_STORAGE = ("Storage Commitment", "Media Storage Directory")  # whose names say so all the same


def is_stored(abstract_syntax: str) -> bool:
    """Whether what comes under it is taken.

    1. Private: yes, whatever it is; what is no object of a patient is refused by itself.
    2. Known to PS3.6: if it is a SOP class named storage, and of patients.
    3. Not known, because it is newer than our tables or older: if it stands where storage SOP classes do.
    """
    if not abstract_syntax.startswith(OF_DICOM):
        return bool(abstract_syntax)
    known = uid.UID(abstract_syntax, IGNORE)
    if known.type and known.name:
        named = "Storage" in known.name and not known.name.startswith(NOT_STORAGE)
        return known.type == "SOP Class" and named and abstract_syntax not in WITHOUT_PATIENT
    return abstract_syntax.startswith(STORAGE)
