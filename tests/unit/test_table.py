"""CSV of series: what has a column."""

from api.table import ATTRIBUTES
from dicom.header import REQUEST_ATTRIBUTES, SERIES_LEVEL
from gateway.reporting import NOT_IN_ATTRIBUTES


def test_every_attribute_that_a_gateway_sends_has_a_column() -> None:
    sent = {keyword for keyword, _ in (SERIES_LEVEL | REQUEST_ATTRIBUTES).values()}
    assert set(ATTRIBUTES) == sent - set(NOT_IN_ATTRIBUTES) - {"Modality"}
