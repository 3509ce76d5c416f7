"""One guard on the real weights; a guard on bytes for the others."""

from __future__ import annotations

import pytest

from srllm_guard import Guard, Policy
from srllm_guard.results import Moderation
from tests.byte_engine import ByteEngine, runtime


@pytest.fixture(scope="session")
def real_guard() -> Guard:
    return Guard(device="cpu")


@pytest.fixture
def seen() -> list[Moderation]:
    """Every result of the guard."""
    return []


@pytest.fixture
def guard(byte_engine: ByteEngine, seen: list[Moderation]) -> Guard:
    return Guard(runtime(byte_engine), on_result=seen.append)


@pytest.fixture
def blocking() -> Guard:
    """Cannot make anything safe, and raises."""
    policy = Policy(ladder=("block",), on_block="raise")
    return Guard(runtime(ByteEngine()), policy=policy)


@pytest.fixture
def torn() -> Guard:
    """Makes all safe but what is stupid, and raises at that."""
    engine = ByteEngine(fault="raise", within="generate", only="stupid")
    policy = Policy(ladder=("rewrite", "omit", "block"), on_block="raise")
    return Guard(runtime(engine), policy=policy)
