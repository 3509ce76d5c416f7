"""What others offer for the same requests: transformers, Optimum, and llama.cpp.

Each decodes greedily with the adapter merged, as the paper's own inference does, and answers with
what our engines answer with, so that outputs compare.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from srllm_guard.engines.base import Continuation, Ids, Request
from srllm_guard.engines.loading import load_model
from srllm_guard.models.bundle import Bundle

LOOKUP = 10
"""Tokens that prompt lookup guesses, as first published (apoorvumang/prompt-lookup-decoding)."""


class Transformers:
    """`generate` of transformers, or of Optimum's ONNX Runtime model, which is its own.

    Args:
        model: a causal language model.
        device: where its inputs go.
        options: more options of `generate`.
    """

    def __init__(self, model: Any, device: torch.device, **options: Any) -> None:
        self._model = model
        self._device = device
        self._options = options
        self._passes = 0
        if isinstance(model, torch.nn.Module):
            model.register_forward_pre_hook(self._count)

    def decode(self, requests: Sequence[Request]) -> list[Continuation]:
        """Continuations of requests that share a batch, prompts padded at the left."""
        width = max(len(request.prompt) for request in requests)
        ids = torch.zeros(len(requests), width, dtype=torch.long)
        mask = torch.zeros_like(ids)
        for n, request in enumerate(requests):
            ids[n, width - len(request.prompt) :] = torch.tensor(request.prompt)
            mask[n, width - len(request.prompt) :] = 1
        stop = requests[0].stop
        self._passes = 0
        with torch.inference_mode():
            out = self._model.generate(
                ids.to(self._device),
                attention_mask=mask.to(self._device),
                max_new_tokens=max(request.limit for request in requests),
                do_sample=False,
                eos_token_id=sorted(stop),
                pad_token_id=min(stop),
                **self._options,
            )
        rows = out[:, width:].tolist()
        return [
            cut(row, request, self._passes) for row, request in zip(rows, requests, strict=True)
        ]

    def forward(self, ids: Ids) -> Tensor:
        """Logits `[V]` behind the last token, from one pass over all of them."""
        with torch.inference_mode():
            logits = self._model(torch.tensor([ids], device=self._device)).logits
        last: Tensor = logits[0, -1].cpu()
        return last

    def _count(self, *_: object) -> None:
        self._passes += 1


def cut(ids: Sequence[int], request: Request, passes: int = 0) -> Continuation:
    """What was decoded before the first stop id; without a count each token took a pass."""
    ids = ids[: request.limit]
    end = next((n for n, index in enumerate(ids) if index in request.stop), len(ids))
    finished = end < len(ids)
    return Continuation(tuple(ids[:end]), finished, passes or end + finished)


def merged(bundle: Bundle, base: Path, device: torch.device) -> Any:
    """The bundle's model in transformers, its adapter merged."""
    return load_model(bundle, base, device, four_bit=False)


def optimum(model: Any, folder: Path, device: torch.device, threads: int) -> Any:
    """The merged model, exported by Optimum, in its own class.

    Args:
        model: as `merged` gives it.
        folder: where the export is put.
        device: CPU, or CUDA where onnxruntime-gpu is installed.
        threads: of ONNX Runtime.

    Raises:
        ImportError: Optimum or ONNX Runtime is not installed.
        RuntimeError: ONNX Runtime does not run on this device.
    """
    import onnxruntime
    from optimum.onnxruntime import ORTModelForCausalLM

    logging.getLogger("optimum").setLevel(logging.ERROR)
    provider = "CUDAExecutionProvider" if device.type == "cuda" else "CPUExecutionProvider"
    if provider not in onnxruntime.get_available_providers():
        raise RuntimeError(f"ONNX Runtime has no {provider} here")
    weights = folder / "merged"
    if not weights.exists():
        model.save_pretrained(weights)
    settings = onnxruntime.SessionOptions()
    settings.intra_op_num_threads = threads
    exported = ORTModelForCausalLM.from_pretrained(
        weights, export=True, provider=provider, session_options=settings
    )
    exported.generation_config.eos_token_id = None
    return exported
