from __future__ import annotations

import pytest


@pytest.fixture(params=["edge", "exact"])
def backend(request: pytest.FixtureRequest) -> str:
    return request.param
