"""Say which InstanceNumbers a series seems to lack: evidence against its completeness, never for it. Pure."""

from collections.abc import Iterable
from itertools import pairwise

MOST_GAPS = 3  # a series with more is numbered otherwise: by slice and phase, in steps, at random
MOST_MISSING = 0.2  # share of the numbers of a series: one that lacks more is a selection
TEXT_LENGTH = 80  # characters at most: three gaps of ten digits each fit


def gaps(numbers: Iterable[int]) -> str | None:
    """Say which numbers between the first and the last are missing; None where they tell nothing.

    A series has to begin at 0 or 1: then its sender counts its images. No number is known behind the last one.
    """
    known = sorted(set(numbers))
    if not known or known[0] not in (0, 1):
        return None
    missing = [(before + 1, after - 1) for before, after in pairwise(known) if after - before > 1]
    count = sum(last - first + 1 for first, last in missing)
    if not missing or len(missing) > MOST_GAPS or count > MOST_MISSING * (known[-1] - known[0] + 1):
        return None
    told = ", ".join(str(first) if first == last else f"{first} to {last}" for first, last in missing)
    return f"{told} missing?"[:TEXT_LENGTH]
