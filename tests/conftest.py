"""A guard that runs on bytes, for every test that needs no weights."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from srllm_guard import Guard
from tests.byte_engine import ByteEngine, runtime


@pytest.fixture
def byte_engine() -> Iterator[ByteEngine]:
    engine = ByteEngine()
    yield engine
    engine.release.set()


@pytest.fixture
def byte_guard(byte_engine: ByteEngine) -> Guard:
    return Guard(runtime(byte_engine))
