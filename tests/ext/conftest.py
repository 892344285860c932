from typing import Any

import pytest

from tests.ext.twins import NATIVE, REFERENCE


@pytest.fixture(params=[NATIVE, REFERENCE], ids=["native", "reference"])
def codec(request: pytest.FixtureRequest) -> Any:
    """Each test that takes this runs twice: on the kernels and on their twin."""
    return request.param
