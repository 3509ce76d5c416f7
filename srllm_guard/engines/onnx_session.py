"""ONNX Runtime sessions over a static cache: what one row of tokens needs to run.

Keys and values are written by position into arrays that both graphs read and write in place, so a
rejected draft is taken back by writing over it, and the cache never leaves its device.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

from srllm_guard.engines.base import Floats, Ids
from srllm_guard.errors import ConfigError, EngineError, MissingExtra, ModelError
from srllm_guard.models.exported import HEADS_GRAPH, LOWER, UPPER, Exported

try:
    import onnxruntime as ort
except ImportError as error:
    raise MissingExtra(extra="onnx", needed_for="the ONNX engine") from error

VERSION: str = ort.__version__
"""Of ONNX Runtime."""

IDS = "input_ids"
"""Input `[1, T]`, int64."""
SEEN = "seen"
"""Input `[1]`, int32: place of the last token of a pass."""
LENGTH = "length"
"""Input, a scalar int32: tokens before the end of the pass."""
WANT = "want"
"""Input `[1]`, int64: for so many of the last tokens logits are wanted."""
HIDDEN = "hidden"
"""States between the two graphs, `[1, T, H]`."""
LOGITS = "logits"
"""Output `[1, W, V]`, float32."""
OWNER = "owner"
"""Input `[1, T]`, int64, of the heads: the segment of each token."""
NUMBERS = "numbers"
"""Input `[S]`, int64, of the heads: the segments that are judged."""

CUDA = "CUDAExecutionProvider"
CPU = "CPUExecutionProvider"

PART = 512
"""Most tokens of a pass: attention takes memory for each pair of them."""


def cache_names(layer: int) -> tuple[tuple[str, str], tuple[str, str]]:
    """Of a layer's keys and of its values: the name before a pass and the one behind it."""
    key, value = (
        (f"past_key_values.{layer}.{part}", f"present.{layer}.{part}") for part in ("key", "value")
    )
    return key, value


class Sessions:
    """The three graphs of an exported model on one device.

    Args:
        exported: the folder, checked.
        device: "cpu", "cuda", "cuda:N" or "auto": CUDA if ONNX Runtime and the precision allow.
        threads: of each session; None takes one for each physical core.

    Raises:
        ConfigError: the device is unknown or not there, or `threads` makes no sense.
        ModelError: ONNX Runtime cannot load a graph.
    """

    def __init__(self, exported: Exported, device: str, threads: int | None) -> None:
        if threads is not None and threads < 1:
            raise ConfigError(f"threads is {threads}.", hint="Give 1 or more.")
        self.exported = exported
        self.device, self.index = choose(device, exported.precision)
        self.threads = threads
        try:
            self.lower = self._open(LOWER)
        except (ConfigError, ModelError):
            # A build for CUDA says that it has CUDA on machines without a GPU as well.
            if device != "auto" or self.device == "cpu":
                raise
            self.device = "cpu"
            self.lower = self._open(LOWER)
        self.name = f"cuda:{self.index}" if self.device == "cuda" else "cpu"
        self.upper = self._open(UPPER)
        self._heads = self._open(HEADS_GRAPH)
        half = exported.precision == "fp16"
        self.dtype = np.dtype(np.float16 if half else np.float32)
        """Of keys and values."""

    def judge(self, hidden: Floats, owner: Sequence[int], segments: int) -> tuple[Floats, Floats]:
        """Run the heads.

        Args:
            hidden: states `[1, T, H]`.
            owner: the segment of each of the T tokens.
            segments: S, how many there are.

        Returns:
            Label logits `[S, N_LOGITS]` and span logits `[T, len(CATEGORIES)]`.
        """
        fed = {
            HIDDEN: hidden,
            OWNER: np.array([owner], np.int64),
            NUMBERS: np.arange(segments, dtype=np.int64),
        }
        labels, spans = self._heads.run(None, fed)
        return labels[0], spans[0]

    @property
    def providers(self) -> list[str]:
        """The execution providers that the sessions really have."""
        found: list[str] = self.lower.get_providers()
        return found

    def _open(self, name: str) -> Any:
        options = ort.SessionOptions()
        options.log_severity_level = 3
        options.intra_op_num_threads = self.threads or 0
        # The graphs run in turn: the threads of one must not spin on the cores of the next.
        options.add_session_config_entry("session.force_spinning_stop", "1")
        providers: list[Any] = [CPU]
        if self.device == "cuda":
            providers.insert(0, (CUDA, {"device_id": self.index}))
        try:
            session = ort.InferenceSession(
                self.exported.folder / name, sess_options=options, providers=providers
            )
        except Exception as error:  # its errors share no root
            raise ModelError(
                f"ONNX Runtime {ort.__version__} cannot load {name} ({type(error).__name__}).",
                hint="Update onnxruntime, or export the bundle again.",
            ) from error
        if self.device == "cuda":
            check_providers(session.get_providers())
        return session


def choose(device: str, precision: str) -> tuple[str, int]:
    """Kind and number of the device that is asked for.

    Raises:
        ConfigError: it is unknown, not there, or does not run this precision.
    """
    available = ort.get_available_providers()
    if device == "auto":
        if CUDA not in available or precision != "fp16":
            return "cpu", 0
        _preload()
        return "cuda", 0
    if device == "cpu":
        return "cpu", 0
    if not (match := re.fullmatch(r"cuda(?::(\d+))?", device)):
        raise ConfigError(f"Unknown device {device!r}.", hint="Use auto, cpu, cuda or cuda:N.")
    if precision != "fp16":
        raise ConfigError(
            f"Device {device!r} was asked for, and this model was exported in {precision}.",
            hint="On CUDA it runs in fp16: srllm-guard export DIR --precision fp16",
        )
    check_providers(available)
    _preload()
    return "cuda", int(match[1] or 0)


def _preload() -> None:
    """Find the CUDA libraries that pip installed."""
    if hasattr(ort, "preload_dlls"):
        ort.preload_dlls()


def check_providers(found: Sequence[str]) -> None:
    """Make sure that CUDA is among the providers.

    Raises:
        ConfigError: it is not; ONNX Runtime itself falls back to the CPU and only logs it.
    """
    if CUDA not in found:
        raise ConfigError(
            f"CUDA was asked for; this ONNX Runtime {ort.__version__} has {', '.join(found)}.",
            hint='Install CUDA 12 with cuDNN 9 and "srllm-guard[onnx-gpu]" in place of '
            'onnxruntime, or use device="cpu".',
        )


class Row:
    """One text in the making: its cache, bound to the graphs.

    Args:
        sessions: run it.
        slots: S, places of the cache.
        whole: False for detection, which runs the lower graph only.
    """

    def __init__(self, sessions: Sessions, slots: int, *, whole: bool = True) -> None:
        self._sessions = sessions
        sizes, below = sessions.exported.sizes, sessions.exported.manifest.layer
        layers = sizes.layers if whole else below
        shape = (layers, 2, 1, sizes.kv_heads, slots, sizes.head_dim)
        self._arrays: NDArray[Any] | None = None
        if sessions.device == "cpu":
            # Zeros, though what was not written is not read: the system hands them out untouched.
            self._arrays = np.zeros(shape, sessions.dtype)
        self._lower = self._bind(sessions.lower, range(below), shape)
        self._upper: Any = None
        if whole:
            self._upper = self._bind(sessions.upper, range(below, layers), shape)

    def _bind(self, session: Any, layers: range, shape: tuple[int, ...]) -> Any:
        binding = session.io_binding()
        for layer in layers:
            for part, (old, new) in enumerate(cache_names(layer)):
                value = self._value(layer, part, shape[2:])
                binding.bind_ortvalue_input(old, value)
                binding.bind_ortvalue_output(new, value)
        return binding

    def _value(self, layer: int, part: int, shape: tuple[int, ...]) -> Any:
        if self._arrays is not None:
            return ort.OrtValue.ortvalue_from_numpy(self._arrays[layer, part])
        return ort.OrtValue.ortvalue_from_shape_and_type(
            shape, self._sessions.dtype, "cuda", self._sessions.index
        )

    def copy(self, other: Row, count: int) -> None:
        """Take the first `count` places of another row on the CPU, as deep as this one goes."""
        if self._arrays is None or other._arrays is None:
            raise ValueError("a cache on a device cannot be copied")
        depth = len(self._arrays)
        self._arrays[..., :count, :] = other._arrays[:depth, ..., :count, :]

    def hidden(self, ids: Ids, at: int) -> Floats:
        """States `[1, T, H]` of ids that stand at place `at`, after the lower graph."""
        parts = [self._below(ids[n : n + PART], at + n) for n in range(0, len(ids), PART)]
        return np.concatenate([part.numpy() for part in parts], 1)

    def logits(self, ids: Ids, at: int, want: int) -> Floats:
        """Logits `[want, V]` of what follows each of the last ids; `want` is at most `PART`."""
        starts = [*range(0, max(len(ids) - want, 1), PART), len(ids)]
        for first, last in pairwise(starts):
            states = self._below(ids[first:last], at + first)
            found = self._above(states, at + last, want)
        return found

    def _below(self, ids: Ids, at: int) -> Any:
        binding = self._lower
        binding.bind_cpu_input(IDS, np.array([ids], np.int64))
        self._run(self._sessions.lower, binding, at + len(ids), HIDDEN)
        return binding.get_outputs()[-1]

    def _above(self, states: Any, end: int, want: int) -> Floats:
        binding = self._upper
        binding.bind_ortvalue_input(HIDDEN, states)
        binding.bind_cpu_input(WANT, np.array([want], np.int64))
        self._run(self._sessions.upper, binding, end, LOGITS)
        logits: Floats = binding.get_outputs()[-1].numpy()[0]
        return logits

    def _run(self, session: Any, binding: Any, end: int, output: str) -> None:
        sessions = self._sessions
        binding.bind_cpu_input(SEEN, np.array([end - 1], np.int32))
        binding.bind_cpu_input(LENGTH, np.array(end, np.int32))
        if output == HIDDEN and sessions.device == "cuda":
            binding.bind_output(output, "cuda", sessions.index)
        else:
            binding.bind_output(output)
        try:
            session.run_with_iobinding(binding)
        except Exception as error:  # its errors share no root, and may quote what was run
            raise EngineError(
                f"ONNX Runtime failed with {type(error).__name__}.", hint="See the cause above."
            ) from error
