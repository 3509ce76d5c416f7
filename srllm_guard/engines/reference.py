"""The reference engine: transformers runs the model, PEFT's adapter merged or beside it.

It takes any causal LM with an adapter, in full precision or in 4 bits, and is what other engines
are compared with.
"""

from __future__ import annotations

import importlib.util
import json
import logging
from collections.abc import Sequence
from itertools import groupby
from pathlib import Path
from typing import Any

from srllm_guard.engines.base import Continuation, Ids, Request, Scores, Window
from srllm_guard.errors import BundleError, ConfigError, EngineError, MissingExtra
from srllm_guard.models.bundle import ADAPTER, ADAPTER_CONFIG, HEADS, Bundle

try:
    import torch
    from safetensors.torch import load_file
    from torch import Tensor
    from transformers import AutoModelForCausalLM, LogitsProcessor, LogitsProcessorList
except ImportError as error:
    raise MissingExtra(extra="torch", needed_for="the reference engine") from error

from srllm_guard.engines.heads import DetectionHeads, HeadsConfig
from srllm_guard.engines.trunk import Trunk

BATCH = 16
"""Most windows or requests that run together on a GPU. On a CPU, what would not run together alone
does not run together in a crowd: the last bits of a sum depend on the shape of the batch, and a
result must not depend on its neighbours."""

DOWN, UP = ".lora_A.weight", ".lora_B.weight"
"""Ends of the names of an adapter's weights."""

OTHER_BASE = "Use the base model that the bundle was trained on."


class ReferenceEngine:
    """transformers on CPU or CUDA.

    Args:
        bundle: adapter, heads and manifest.
        base: folder of the base weights, see `srllm_guard.models.store.find_base`.
        device: "cpu", "cuda", "cuda:1" or "auto" (CUDA if it is there).
        four_bit: load the base in 4 bits by bitsandbytes; the adapter then stays beside it.

    Raises:
        ConfigError: the device is not there.
        BundleError: adapter and base do not fit.
        MissingExtra: torch, PEFT or bitsandbytes is needed and not installed.
    """

    name = "reference"

    def __init__(
        self, bundle: Bundle, base: Path, device: str = "auto", *, four_bit: bool = False
    ) -> None:
        self._torch_device = _device(device)
        self.device = str(self._torch_device)
        self._four_bit = four_bit
        self._shares = self._torch_device.type != "cpu"
        self._model = _load(bundle, base, self._torch_device, four_bit)
        self.max_tokens = int(self._model.config.max_position_embeddings)
        self._heads = _heads(bundle, self._model.config.hidden_size).to(self._torch_device)
        self._trunk = Trunk(self._model.model, bundle.manifest.layer)

    def detect(self, windows: Sequence[Window]) -> list[Scores]:
        """See `Engine.detect`."""
        order = sorted(range(len(windows)), key=lambda n: len(windows[n].ids))
        found: dict[int, Scores] = {}
        size = BATCH if self._shares else 1
        with torch.inference_mode():
            for numbers in _parts(order, size):
                found.update(zip(numbers, self._judge([windows[n] for n in numbers]), strict=True))
        return [found[n] for n in range(len(windows))]

    def generate(self, requests: Sequence[Request]) -> list[Continuation]:
        """See `Engine.generate`."""

        def kin(number: int) -> tuple[Any, ...]:
            # Requests with other stop ids cannot share a batch; candidates of one prompt always do.
            request = requests[number]
            return sorted(request.stop), () if self._shares else request.prompt

        order = sorted(range(len(requests)), key=lambda n: (kin(n), len(requests[n].prompt)))
        found: dict[int, Continuation] = {}
        for _, group in groupby(order, key=kin):
            for numbers in _parts(list(group), BATCH):
                batch = [requests[n] for n in numbers]
                found.update(zip(numbers, self._continue(batch), strict=True))
        return [found[n] for n in range(len(requests))]

    def info(self) -> dict[str, Any]:
        """See `Engine.info`."""
        import transformers

        return {
            "torch": torch.__version__,
            "transformers": transformers.__version__,
            "threads": torch.get_num_threads(),
            "precision": "4-bit" if self._four_bit else str(self._model.dtype).split(".")[-1],
        }

    def _judge(self, windows: Sequence[Window]) -> list[Scores]:
        longest = max(len(window.ids) for window in windows)
        rows = max(window.segments for window in windows)
        ids = torch.zeros(len(windows), longest, dtype=torch.long)
        owner = torch.full((len(windows), longest), -2, dtype=torch.long)
        for n, window in enumerate(windows):
            ids[n, : len(window.ids)] = torch.tensor(window.ids)
            owner[n, : len(window.ids)] = torch.tensor(window.owner)
        owner = owner.to(self._torch_device)
        hidden = self._trunk(ids.to(self._torch_device)).float()
        labels, spans = self._heads(hidden, owner, rows)
        return [
            Scores(
                labels[n, : window.segments].cpu().numpy(),
                spans[n, : len(window.ids)].cpu().numpy(),
            )
            for n, window in enumerate(windows)
        ]

    def _continue(self, requests: Sequence[Request]) -> list[Continuation]:
        """Decode requests with one set of stop ids together; prompts are padded at the left."""
        width = max(len(request.prompt) for request in requests)
        limits = [min(r.limit, self.max_tokens - len(r.prompt)) for r in requests]
        if min(limits) <= 0:
            raise EngineError(
                f"A prompt has {width} tokens; the model takes {self.max_tokens}.",
                hint="Send shorter segments.",
                retryable=False,
            )
        ids = torch.zeros(len(requests), width, dtype=torch.long)
        mask = torch.zeros_like(ids)
        for n, request in enumerate(requests):
            ids[n, width - len(request.prompt) :] = torch.tensor(request.prompt)
            mask[n, width - len(request.prompt) :] = 1
        stop = requests[0].stop
        with torch.inference_mode():
            out = self._model.generate(
                ids.to(self._torch_device),
                attention_mask=mask.to(self._torch_device),
                max_new_tokens=max(limits),
                do_sample=False,
                eos_token_id=sorted(stop) or None,
                pad_token_id=min(stop, default=0),
                logits_processor=LogitsProcessorList([_Choice(requests, width)]),
            )
        rows = out[:, width:].tolist()
        return [_cut(row[:limit], stop) for row, limit in zip(rows, limits, strict=True)]


def _parts(numbers: list[int], size: int) -> list[list[int]]:
    return [numbers[start : start + size] for start in range(0, len(numbers), size)]


def _cut(ids: list[int], stop: frozenset[int]) -> Continuation:
    """What was decoded before the first stop id."""
    for n, index in enumerate(ids):
        if index in stop:
            return Continuation(tuple(ids[:n]), finished=True)
    return Continuation(tuple(ids), finished=False)


class _Choice(LogitsProcessor):
    """Bars sequences, and turns greedy decoding of a row into sampling with a seed of its own.

    The largest of logits / temperature + Gumbel noise is a draw from the tempered distribution
    (Gumbel, 1954), so rows that sample and rows that do not share one batch, and what a row draws
    does not depend on its neighbours.
    """

    def __init__(self, requests: Sequence[Request], start: int) -> None:
        self._requests = requests
        self._start = start
        self._draws = [torch.Generator().manual_seed(r.seed) for r in requests]

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """`input_ids` [B, T] with the prompts, `scores` [B, V]."""
        scores = scores.float().clone()
        for n, request in enumerate(self._requests):
            if request.barred:
                tail = tuple(input_ids[n, self._start :].tolist())
                scores[n, _next_barred(request.barred, tail)] = -torch.inf
            if request.temperature > 0:
                chances = torch.rand(scores.shape[1], generator=self._draws[n])
                noise = -torch.log(-torch.log(chances.clamp(1e-9, 1 - 1e-7)))
                tempered = _nucleus(scores[n] / request.temperature)
                scores[n] = tempered + noise.to(scores.device)
        return scores


def _next_barred(barred: Sequence[Ids], tail: Ids) -> list[int]:
    """The ids that would complete a barred sequence; what the prompt holds does not count."""
    return [
        sequence[-1]
        for sequence in barred
        if len(sequence) == 1 or tail[-len(sequence) + 1 :] == sequence[:-1]
    ]


def _nucleus(logits: Tensor, share: float = 0.95) -> Tensor:
    """Keep the likeliest ids that together have `share` (Holtzman et al., 2020); `logits` [V]."""
    ordered, index = logits.sort(descending=True)
    before = ordered.softmax(-1).cumsum(-1) - ordered.softmax(-1)
    return logits.index_fill(0, index[before > share], -torch.inf)


def _device(name: str) -> torch.device:
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError:
        raise ConfigError(f"Unknown device {name!r}.", hint="Use auto, cpu or cuda.") from None
    if device.type == "cuda" and not torch.cuda.is_available():
        raise ConfigError(
            f"Device {name!r} was asked for, but torch {torch.__version__} sees no CUDA GPU.",
            hint='Install a CUDA build of torch, or use device="cpu".',
        )
    return device


def _load(bundle: Bundle, base: Path, device: torch.device, four_bit: bool) -> Any:
    # transformers warns about generation flags that belong to other modes; nothing of it is ours.
    logging.getLogger("transformers.generation").setLevel(logging.ERROR)
    options: dict[str, Any] = {
        "dtype": torch.float32 if device.type == "cpu" else torch.bfloat16,
    }
    if four_bit:
        import transformers

        if importlib.util.find_spec("bitsandbytes") is None:
            raise MissingExtra(extra="quant", needed_for="loading the base in 4 bits")
        config: Any = transformers.BitsAndBytesConfig
        options["quantization_config"] = config(
            load_in_4bit=True,
            bnb_4bit_quant_type="nf4",
            bnb_4bit_use_double_quant=True,
            bnb_4bit_compute_dtype=options["dtype"],
        )
        options["device_map"] = {"": device.type if device.index is None else device.index}
    model: Any = AutoModelForCausalLM.from_pretrained(base, local_files_only=True, **options)
    model.generation_config.eos_token_id = None
    if four_bit:
        try:
            from peft import PeftModel
        except ImportError as error:
            raise MissingExtra(extra="torch", needed_for="an adapter on a 4-bit base") from error
        try:
            return PeftModel.from_pretrained(model, str(bundle.folder)).get_base_model().eval()
        except (RuntimeError, ValueError) as error:
            raise BundleError("The adapter does not fit this base.", hint=OTHER_BASE) from error
    merge_adapter(model, bundle.folder)
    return model.to(device).eval()


def merge_adapter(model: Any, folder: Path) -> None:
    """Add a LoRA adapter in PEFT's format to the weights of `model`, computed in float32.

    Covers plain LoRA (with or without rank-stabilised scaling) on linear layers, which is what
    bundles hold.

    Raises:
        BundleError: the adapter is of another kind, or does not fit this base.
    """
    config = json.loads((folder / ADAPTER_CONFIG).read_text(encoding="utf-8"))
    weights = load_file(folder / ADAPTER)
    odd = ("use_dora", "fan_in_fan_out", "alpha_pattern", "rank_pattern")
    if (
        config.get("peft_type") != "LORA"
        or config.get("bias", "none") != "none"
        or any(config.get(key) for key in odd)
        or any(not name.endswith((DOWN, UP)) for name in weights)
    ):
        raise BundleError(
            f"The adapter in {folder} is not plain LoRA.",
            hint="Merge it with PEFT and make a bundle of the result.",
        )
    root = config["r"] ** 0.5 if config.get("use_rslora") else config["r"]
    scale = config["lora_alpha"] / root
    layers = dict(model.named_modules())
    with torch.no_grad():
        for name, a in weights.items():
            if not name.endswith(DOWN):
                continue
            path = name.removeprefix("base_model.model.").removesuffix(DOWN)
            b = weights[name.removesuffix(DOWN) + UP]
            weight = getattr(layers.get(path), "weight", None)
            shape = None if weight is None else tuple(weight.shape)
            if weight is None or shape != (b.shape[0], a.shape[1]):
                raise BundleError(
                    f"The adapter does not fit this base: {path} is {shape}, "
                    f"the adapter changes {(b.shape[0], a.shape[1])}.",
                    hint=OTHER_BASE,
                )
            update = (b.float() @ a.float()) * scale
            weight.copy_((weight.float() + update.to(weight.device)).to(weight.dtype))


def _heads(bundle: Bundle, hidden: int) -> DetectionHeads:
    config = HeadsConfig(**bundle.manifest.heads)  # type: ignore[arg-type]
    if config.hidden != hidden:
        raise BundleError(
            f"The heads read states of width {config.hidden}; this base has {hidden}.",
            hint=OTHER_BASE,
        )
    heads = DetectionHeads(config)
    try:
        heads.load_state_dict({k: v.float() for k, v in load_file(bundle.folder / HEADS).items()})
    except RuntimeError as error:
        raise BundleError(
            f"{HEADS} does not fit its manifest.", hint="Get the bundle again."
        ) from error
    return heads.eval()
