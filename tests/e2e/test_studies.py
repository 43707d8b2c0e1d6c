"""Studies of a real Orthanc, over two gateways of which one is killed: verified all, and none before its last image."""

import pytest

from bench.verified_studies import trial


@pytest.mark.slow
@pytest.mark.peer("orthanc")
def test_each_study_of_orthanc_is_verified_and_none_before_its_last_image() -> None:
    result = trial(6, held_back_s=3.0, images=4)
    assert (result.studies, result.verified, result.early, result.held_back) == (6, 6, 0, None)
