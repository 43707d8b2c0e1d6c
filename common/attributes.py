"""Attributes of many images, united: keyword to values in text form."""

from collections.abc import Mapping, Sequence

OF_IMAGES = "OfImages"
"""The end of the names of attributes that hold the values of every image; of others the first value stays."""
MAX_OF_IMAGES = 200  # different values of one such attribute


def news(said: Mapping[str, Sequence[str]], known: Mapping[str, Sequence[str]]) -> dict[str, tuple[str, ...]]:
    """Return what attributes add to those that are known."""
    found: dict[str, tuple[str, ...]] = {}
    for keyword, values in said.items():
        if not values:
            continue
        if keyword not in known:
            found[keyword] = tuple(values)
        elif keyword.endswith(OF_IMAGES):
            union = tuple(dict.fromkeys((*known[keyword], *values)))[:MAX_OF_IMAGES]
            if len(union) > len(known[keyword]):
                found[keyword] = union
    return found
