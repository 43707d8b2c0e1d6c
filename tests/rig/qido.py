"""Matching as DICOM defines it for QIDO-RS, written once more in Python: an oracle of what the database finds."""

import fnmatch
import itertools
import re
import unicodedata

from pydicom.datadict import dictionary_VR

from storage.folding import FOLDED_LENGTH


def is_like(pattern: str, value: str) -> bool:
    """As file names are matched, which takes no time that grows with the power of the stars."""
    return fnmatch.fnmatchcase(value, pattern.replace("[", "[[]"))


def plain(name: str) -> str:
    """In small letters and composed characters, one for one, without what pads a group or the whole."""
    composed = unicodedata.normalize("NFC", name)
    small = "".join(
        c.casefold() if len(c.casefold()) == 1 else c.lower() if len(c.lower()) == 1 else c for c in composed
    )
    groups = [re.sub("[ ^]+$", "", group) for group in small.replace("i̇", "İ").split("=")]
    return re.sub("=+$", "", "=".join(groups))


def spelt(name: str) -> set[str]:
    """With ß and ss in the place of each other, each by itself; or, beyond four of them, all alike."""
    at = [match.span() for match in re.finditer("ß|ss", name)]
    kinds = itertools.product(("ß", "ss"), repeat=len(at)) if len(at) < 5 else [["ß"] * len(at), ["ss"] * len(at)]
    found = {name}
    for chosen in kinds:
        text = name
        for (first, end), kind in reversed([*zip(at, chosen, strict=True)]):
            text = text[:first] + kind + text[end:]
        found.add(text)
    return found


def is_named(asked: str, name: str) -> bool:
    """The name, its first groups, or some of its further ones; a group that is left out between others is any."""
    groups = plain(name)[:FOLDED_LENGTH].split("=")
    pattern = re.sub("=(?==)", "=*", plain(asked))
    for spelling in spelt(pattern):
        for first in range(len(groups)):
            sought = spelling.removeprefix("=") if first else spelling
            if any(is_like(sought, "=".join(groups[first:last])) for last in range(first + 1, len(groups) + 1)):
                return True
    return False


def is_day(asked: str, value: str) -> bool:
    """Matches a date or a range of dates (PS3.4 §C.2.2.2.5)."""
    (first, dash, last), day = asked.replace(".", "").partition("-"), value.replace(".", "")
    return first <= day and (not last or day <= last or day.startswith(last)) if dash else day == first


def is_number(asked: str, value: str) -> bool:
    """Matches an integer string by its number."""
    return bool(re.fullmatch(r"[+-]?\d+", value)) and int(value) == int(asked)


def is_code(asked: str, value: str) -> bool:
    """Matches a code string, by wild cards or as one of a list."""
    return is_like(asked, value) if {"*", "?"} & set(asked) else value in re.split(r"[,\\]", asked)


def is_text(asked: str, value: str) -> bool:
    """Matches any other text, in the composed or the decomposed form that was asked for."""
    return any(is_like(unicodedata.normalize(form, asked), value) for form in ("NFC", "NFD")) or is_like(asked, value)


BY_VR = {"PN": is_named, "IS": is_number, "DA": is_day, "CS": is_code}


def is_found(keyword: str, asked: str, value: str | None) -> bool:
    """Matches a value by the rules of its VR."""
    vr, asked = dictionary_VR(keyword), asked.strip(" ")
    if not asked.strip("*") or (vr == "PN" and not asked.strip("^= ")):
        return True
    if not value or (vr == "PN" and not plain(value)):
        return False
    return BY_VR.get(vr, is_text)(asked, value)
