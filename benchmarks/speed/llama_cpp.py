"""llama.cpp on the GGUF file of the base, with the adapter merged into it.

The adapter is added to the float32 values of each weight that it changes, and the sum is stored as
the weight was (Q4_1 for the base that ships), so llama.cpp reads as many bytes as before. Rounded
once more, it would choose other tokens, and fewer or more of them. So that all do the same
work, it chooses greedily at every step and is then given the token that the others have chosen.
"""

from __future__ import annotations

import atexit
import importlib.util
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from srllm_guard.engines.base import Continuation, Request
from srllm_guard.models.bundle import Base
from srllm_guard.models.gguf import NAMES

MODULES = {name: module for name, module in NAMES.items() if not name.endswith("norm")}
"""transformers' names of GGUF's linear layers."""

SEEN = 4096
"""Tokens of llama.cpp's context."""


class LlamaCpp:
    """Greedy decoding by llama.cpp, along the tokens of another system.

    Args:
        path: a GGUF file.
        threads: of llama.cpp.
        truth: decodes requests as the others do; see `prepare`.

    Raises:
        ImportError: llama-cpp-python is not installed.
    """

    def __init__(
        self,
        path: Path,
        threads: int,
        truth: Callable[[Sequence[Request]], list[Continuation]],
    ) -> None:
        from llama_cpp import Llama

        self._model: Any = Llama(
            str(path), n_ctx=SEEN, n_threads=threads, n_threads_batch=threads, verbose=False
        )
        atexit.register(self._model.close)  # later, what it needs for that is gone
        self._truth = truth
        self._known: dict[Request, Continuation] = {}

    def prepare(self, requests: Sequence[Request]) -> None:
        """Look up what is to be decoded, so that this is not timed."""
        for request in requests:
            if request not in self._known:
                self._known[request] = self._truth([request])[0]

    def decode(self, requests: Sequence[Request]) -> list[Continuation]:
        """Continuations, one after another."""
        self.prepare(requests)
        return [self._continue(request) for request in requests]

    def _continue(self, request: Request) -> Continuation:
        found = self._known[request]
        end = [min(request.stop)] if found.finished else []
        self._model.reset()
        self._model.eval(list(request.prompt))
        self._model.sample(temp=0.0, repeat_penalty=1.0)
        for index in [*found.ids, *end][:-1]:  # behind the last one nothing is asked for
            self._model.eval([index])
            self._model.sample(temp=0.0, repeat_penalty=1.0)
        return Continuation(found.ids, found.finished, len(found.ids) + found.finished)


def source(base: Base) -> Path:
    """The GGUF file of a base, in the package that ships it.

    Raises:
        FileNotFoundError: the base is no GGUF file, or the package is not installed.
    """
    spec = importlib.util.find_spec(base.package) if base.package else None
    if spec and spec.origin and base.file:
        path = Path(spec.origin).parent / base.file
        if path.is_file():
            return path
    raise FileNotFoundError(f"no package here holds {base.file or base.id} as GGUF")


def merge(source: Path, adapter: Path, target: Path) -> None:
    """Write the model of a GGUF file with an adapter merged in.

    Args:
        source: the GGUF file of the base.
        adapter: folder with the adapter in PEFT's format.
        target: the file to write.

    Raises:
        BundleError: the adapter is of another kind, or does not fit.
    """
    import torch
    from gguf import GGUFReader, GGUFWriter, dequantize, quantize

    from srllm_guard.engines.loading import Adapter

    reader, lora = GGUFReader(source), Adapter(adapter)
    heads = {
        "attn_q": int(reader.fields["llama.attention.head_count"].contents()),
        "attn_k": int(reader.fields["llama.attention.head_count_kv"].contents()),
    }
    writer = GGUFWriter(target, "llama")
    _copy_fields(reader, writer)
    for tensor in reader.tensors:
        module = _module(tensor.name)
        data = tensor.data
        if module in lora.modules:
            part = tensor.name.split(".")[-2]
            values = dequantize(tensor.data, tensor.tensor_type).astype(np.float32)
            added = lora.add(module, torch.zeros(values.shape)).numpy()
            values += _permuted(added, heads[part]) if part in heads else added
            data = quantize(values, tensor.tensor_type)
        writer.add_tensor(tensor.name, data, raw_dtype=tensor.tensor_type)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def _module(name: str) -> str:
    """What transformers calls a weight of a GGUF file; "" for what is no linear layer."""
    parts = name.split(".")
    if parts[0] != "blk" or parts[2] not in MODULES:
        return ""
    return f"model.layers.{parts[1]}.{MODULES[parts[2]]}"


def _permuted(weight: NDArray[np.float32], heads: int) -> NDArray[np.float32]:
    """Rows in GGUF's order, which interleaves rotary halves; `weight` is `[heads * D, hidden]`."""
    half = weight.shape[0] // heads // 2
    return weight.reshape(heads, 2, half, -1).swapaxes(1, 2).reshape(weight.shape)


def _copy_fields(reader: Any, writer: Any) -> None:
    """What the file says of the model; what the writer says by itself is left out."""
    from gguf import GGUFValueType

    for name, entry in reader.fields.items():
        if name.startswith("GGUF.") or name == "general.architecture":
            continue
        kind = entry.types[0]
        inner = entry.types[-1] if kind == GGUFValueType.ARRAY else None
        contents = entry.contents()
        if contents is not None:
            writer.add_key_value(name, contents, kind, sub_type=inner)
