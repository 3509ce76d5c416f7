"""What only a CUDA device can show: captured graphs, and half precision on it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from srllm_guard.engines.base import Asked, Request
from srllm_guard.prompt import Prompt
from tests.contract.conftest import Tiny, drafted

torch = pytest.importorskip("torch")
pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device"),
]

from srllm_guard.engines.graphs import capture  # noqa: E402
from srllm_guard.engines.torch import TorchEngine  # noqa: E402

TEXTS = ["You are an idiot, and the train leaves at 9:40.", "Hi!", "abcabcabc abcabcabc"]


@pytest.fixture(autouse=True)
def exact_products() -> Iterator[None]:
    """TF32 rounds products to 10 bits, which would hide what is compared."""
    before = torch.backends.cuda.matmul.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = False
    yield
    torch.backends.cuda.matmul.allow_tf32 = before


def engine(tiny: Tiny, **settings: Any) -> TorchEngine:
    return TorchEngine(tiny.bundle, tiny.base, **settings)


@pytest.fixture
def requests(prompt: Prompt) -> list[Request]:
    return drafted(prompt, TEXTS, 40)


def test_work_is_captured_and_replayed() -> None:
    device = torch.device("cuda")
    given, found = torch.ones(4, device=device), torch.zeros(4, device=device)

    def double() -> None:
        found.copy_(given * 2)

    run = capture(double, device)
    given.fill_(5)  # the warm-up has run on ones
    assert not found.eq(10).any()
    run()
    torch.cuda.synchronize()
    assert found.eq(10).all()


def test_in_fp32_it_writes_what_the_cpu_writes(
    tiny: Tiny,
    requests: list[Request],
) -> None:
    asked = [
        *requests,
        *(replace(requests[0], temperature=0.9, seed=seed) for seed in range(5)),
        replace(requests[1], barred=((40,), (41, 42))),
        replace(requests[0], prompt=requests[0].prompt * 12, limit=10),
    ]
    there = engine(tiny, device="cuda", precision="fp32")
    here = engine(tiny, device="cpu")
    assert there.generate(asked) == here.generate(asked)
    assert there.generate(asked) == here.generate(asked)  # this time all is captured already


def test_in_fp32_it_judges_as_the_cpu_does(tiny: Tiny, prompt: Prompt) -> None:
    windows = [prompt.window(text, [(0, len(text))])[0] for text in TEXTS]
    asked = [Asked(windows[0].ids, tuple(prompt.encode("abc")))]
    there = engine(tiny, device="cuda", precision="fp32")
    here = engine(tiny, device="cpu")
    for one, other in zip(there.detect(windows), here.detect(windows), strict=True):
        np.testing.assert_allclose(one.labels, other.labels, atol=1e-3)
        np.testing.assert_allclose(one.spans, other.spans, atol=1e-3)
    np.testing.assert_allclose(there.score(asked)[0], here.score(asked)[0], atol=1e-3)


@pytest.mark.parametrize("precision", [None, "bf16", "fp16"])
def test_half_precision_stays_near(
    tiny: Tiny,
    prompt: Prompt,
    requests: list[Request],
    precision: str | None,
) -> None:
    there = engine(tiny, device="cuda", precision=precision)
    here = engine(tiny, device="cpu")
    window = prompt.window(TEXTS[0], [(0, len(TEXTS[0]))])[0]
    [one], [other] = there.detect([window]), here.detect([window])
    assert np.corrcoef(one.labels.ravel(), other.labels.ravel())[0, 1] > 0.99
    found = there.generate(requests)
    assert all(each.finished or len(each.ids) == 40 for each in found)
