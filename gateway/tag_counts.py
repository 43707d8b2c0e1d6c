"""Compute how many images a series should have from counts in its tags. No I/O.

These tags count images in an acquisition, a position or a cardiac cycle, and only some sources make a series of exactly
those. So `IdlePolicy` learns for each source and each of the `TAG_COUNTS` if it is right. Orthanc computes the same
products for its ExpectedNumberOfInstances, and believes them at once.
"""

import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from pydicom.uid import CTImageStorage, MRImageStorage, PositronEmissionTomographyImageStorage

from dicom.header import InstanceValues
from models import INSTANCE_KEYWORDS

IMAGES_IN_SERIES = "NumberOfSeriesRelatedInstances"
TEMPORAL_POSITIONS = "NumberOfTemporalPositions"
IS_LENGTH = 12  # characters of an IS: PS3.5 table 6.2-1
COUNTS_BELOW = 2**31  # models.Count
CLASS_AT, FRAMES_AT = INSTANCE_KEYWORDS.index("SOPClassUID"), INSTANCE_KEYWORDS.index("NumberOfFrames")
SLICES = frozenset((CTImageStorage, MRImageStorage))  # classes of one frame an image that have phases and positions


class TagCount(NamedTuple):
    """A way to compute how many images a series has."""

    name: str
    """The name under which is learnt if it is right."""
    factors: tuple[str, ...]
    """The tags whose product is the number."""
    sop_classes: frozenset[str] | None
    """The classes that all images of the series must be of, and of one frame each; None for any."""
    meaning: str
    """The meaning of the number, in words."""


IN_ACQUISITION = TagCount(
    "acquisition", ("ImagesInAcquisition",), None, "a tag counts {} images in an acquisition"
)  # PS3.3 table C.7-9
TAG_COUNTS = (
    TagCount(  # PS3.3 table C.8-4: images of each temporal position
        "positions",
        ("ImagesInAcquisition", TEMPORAL_POSITIONS),
        SLICES,
        "tags count {} images in all temporal positions",
    ),
    IN_ACQUISITION,
    TagCount(  # PS3.3 table C.8-60
        "slices",
        ("NumberOfSlices", "NumberOfTimeSlices"),
        frozenset((PositronEmissionTomographyImageStorage,)),
        "tags count {} images in all time slices",
    ),
    TagCount("cycle", ("CardiacNumberOfImages",), SLICES, "a tag counts {} images in a cardiac cycle"),
)
"""The ways, in the order in which they are tried: the first one that is right at a source counts."""


def count_in(attributes: Mapping[str, Sequence[str]], keyword: str) -> int | None:
    """Return the number of images in a tag; None if it has no valid one. Senders fill these tags in carelessly."""
    text, *_ = attributes.get(keyword) or ("",)
    if text.isdecimal() and len(text) <= IS_LENGTH and 0 < int(text) < COUNTS_BELOW:
        return int(text)
    return None


def tag_counts(attributes: Mapping[str, Sequence[str]], sop_class_uid: str) -> dict[str, int]:
    """Return the numbers of images by the TAG_COUNTS that apply, by name.

    `sop_class_uid` is that of all images, '' if there are several or images have several frames.
    """
    return {
        count.name: number
        for count in TAG_COUNTS
        if (count.sop_classes is None or sop_class_uid in count.sop_classes)
        and (number := _product(attributes, count.factors)) is not None
    }


def _product(attributes: Mapping[str, Sequence[str]], factors: Sequence[str]) -> int | None:
    numbers = [number for keyword in factors if (number := count_in(attributes, keyword)) is not None]
    if len(numbers) < len(factors) or (TEMPORAL_POSITIONS in factors and count_in(attributes, TEMPORAL_POSITIONS) == 1):
        return None  # with one position it is no other number than ImagesInAcquisition
    product = math.prod(numbers)
    return product if product < COUNTS_BELOW else None


def class_of_one_frame(values: InstanceValues) -> str:
    """Return an image's SOP Class; '' if it has none, or several frames."""
    return (values[CLASS_AT] or "") if values[FRAMES_AT] in (None, "1") else ""
