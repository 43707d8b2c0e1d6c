import pytest

pytest.register_assert_rewrite("tests.rig")  # else a check of a helper's would not say what it compared
