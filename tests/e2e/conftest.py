"""One guard on the real weights for all end-to-end tests: loading it is most of their time."""

from __future__ import annotations

import pytest

from srllm_guard import Guard


@pytest.fixture(scope="session")
def guard() -> Guard:
    return Guard(device="cpu")
