"""Names as they are compared: without regard to case, to how an accent is encoded, and to what pads them.

A character stays one character, so that `?` stands for one of those that were sent: ß does not become ss, which is
asked for as another spelling.
"""

import functools
import itertools
import re
import unicodedata

FOLDED_LENGTH = 512  # characters of a name, as many as an index of PostgreSQL bears; DICOM's have 194 at most
MAX_SHARP = 4  # of ß and ss in a name: 16 spellings, each of which is looked for
DOTTED_I = "i\u0307", "\u0130"  # İ in small letters is two characters


def folded(name: str) -> str:
    """Fold a name, or a pattern of one: carets and groups that are empty at an end mean nothing (PS3.5 §6.2.1)."""
    return "=".join(group.rstrip("^ ") for group in small(name).split("=")).rstrip("=")


def small(text: str) -> str:
    """Return a text, or the beginning of one, in small letters and composed characters."""
    composed = unicodedata.normalize("NFC", text)
    return composed.lower() if text.isascii() else "".join(map(_small, composed)).replace(*DOTTED_I)


def spellings(name: str) -> tuple[str, ...]:
    """Return the patterns that a name asked for stands for; a group that it leaves out may be any."""
    text = re.sub("=(?==)", "=*", folded(name))
    return tuple(each if {"*", "?"} & set(each) else each[:FOLDED_LENGTH] for each in with_sharp_s(text))


def with_sharp_s(text: str) -> tuple[str, ...]:
    """Spell a text with ß and with ss in the place of each of them; if there are many, as it is and all of one kind."""
    between = re.split("ß|ss", text)
    if len(between) > MAX_SHARP + 1:
        return tuple(dict.fromkeys((text, "ss".join(between), "ß".join(between))))
    product = itertools.product(("ss", "ß"), repeat=len(between) - 1)
    return tuple("".join(itertools.chain(*zip(between, (*chosen, ""), strict=True))) for chosen in product)


@functools.cache
def _small(character: str) -> str:
    """Return the same character in small letters, if that is one."""
    return next((each for each in (character.casefold(), character.lower()) if len(each) == 1), character)
