"""An engine without weights: it reads bytes, knows a few unsafe words, and can fail in many ways.

It stands behind a guard wherever the orchestration is tested, and passes the contract suite like
every other engine.
"""

from __future__ import annotations

import random
import re
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from srllm_guard.engines.base import Asked, Continuation, Floats, Ids, Request, Scores, Window
from srllm_guard.labels import CATEGORIES, N_LOGITS, SLICES, UNSAFE
from srllm_guard.models.bundle import Calibration
from srllm_guard.prompt import TEMPLATES, Prompt
from srllm_guard.runtime import Runtime
from tests.tiny_model import tokenizer

TEMPLATE = "chatml-1"
WORDS = {"idiot": "toxicity", "stupid": "toxicity", "trash": "toxicity", "lazy": "bias"}
"""Unsafe words and the category of their spans."""

GREEDY = "person"
DRAWN = ("person", "friend", "fellow", "neighbour", "colleague", "visitor", "guest", "human")
"""What takes the place of marked text, greedily and by sampling."""

SPOILED: dict[str, dict[str, Callable[[list[Any]], Any]]] = {
    "detect": {
        "none": lambda found: None,
        "count": lambda found: found[:-1],
        "shape": lambda found: [Scores(s.labels[:, :-1], s.spans) for s in found],
        "dtype": lambda found: [Scores(s.labels.astype(object), s.spans) for s in found],
        "nan": lambda found: [Scores(s.labels * np.float32("nan"), s.spans) for s in found],
    },
    "generate": {
        "none": lambda found: None,
        "count": lambda found: found[:-1],
        "type": lambda found: [list(c.ids) for c in found],
        "negative": lambda found: [Continuation((-1, *c.ids), c.finished) for c in found],
        "huge": lambda found: [Continuation((2**40, *c.ids), c.finished) for c in found],
        "unfinished": lambda found: [Continuation(c.ids, finished=False) for c in found],
    },
    "score": {
        "none": lambda found: None,
        "count": lambda found: found[:-1],
        "shape": lambda found: [s[:-1] for s in found],
        "nan": lambda found: [s * np.float32("nan") for s in found],
    },
}
"""Faults that spoil the results of a verb; "raise" and "hang" can happen in both as well."""

INSTEAD = {
    "empty": (b"", False),
    "keep": (b"", True),
    "meta": (b"Here is the rewritten text: ", True),
    "garbled": (b"\xe2 a kind person", False),
    "foreign": (b"das ist das und das ist ist das ist", False),
}
"""Faults that give something else for a rewrite: bytes, and whether the source follows them."""


def byte_values() -> dict[int, int]:
    """The byte that each token id stands for; control tokens are not in it."""
    made = tokenizer(TEMPLATE)
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in printable]
    signs = {byte: chr(byte) for byte in printable}
    signs |= {byte: chr(256 + n) for n, byte in enumerate(others)}  # as GPT-2 writes bytes
    return {made.token_to_id(sign): byte for byte, sign in signs.items()}


@dataclass
class ByteEngine:
    """Judges and rewrites by a list of words."""

    words: dict[str, str] = field(default_factory=lambda: dict(WORDS))
    fault: str | None = None
    """"raise", "hang", or a key of `SPOILED` or `INSTEAD`."""
    within: str = "both"
    """The verb that the fault happens in: "detect", "generate", "score" or "both" of the first."""
    only: str | None = None
    """The fault happens only where this is part of what the engine reads."""
    unlikely: tuple[str, ...] = ()
    """What makes a continuation that holds it improbable."""
    crowded: bool = False
    """Whether a replacement is unsafe beside another one, so that only the whole text tells."""
    name: str = "bytes"
    device: str = "cpu"
    max_tokens: int = 4096
    release: threading.Event = field(default_factory=threading.Event)
    """Ends what hangs."""
    judged: list[Window] = field(default_factory=list)
    """Every window that was asked about, for tests that count."""
    asked: list[Request] = field(default_factory=list)
    """Every request."""

    def __post_init__(self) -> None:
        made = tokenizer(TEMPLATE)
        format_ = TEMPLATES[TEMPLATE]
        self._bytes = byte_values()
        self._ids = {byte: index for index, byte in self._bytes.items()}
        self._end, self._open, self._close, self._split = (
            int(made.token_to_id(token))
            for token in (
                format_.end,
                format_.open_mark,
                format_.close_mark,
                format_.split_mark,
            )
        )
        self._prefix = tuple(made.encode(format_.before, add_special_tokens=False).ids)

    def detect(self, windows: Sequence[Window]) -> list[Scores]:
        """See `Engine.detect`."""
        self.judged += windows
        texts = [self.read(window.ids) for window in windows]
        return self._result("detect", texts, [self._judge(window) for window in windows])

    def generate(self, requests: Sequence[Request]) -> list[Continuation]:
        """See `Engine.generate`."""
        self.asked += requests
        texts = [self.read(request.prompt) for request in requests]
        return self._result("generate", texts, [self._continue(request) for request in requests])

    def score(self, asked: Sequence[Asked]) -> list[Floats]:
        """See `Engine.score`."""
        texts = [self.read(each.ids) for each in asked]
        found = []
        for text, each in zip(texts, asked, strict=True):
            odd = any(word in text for word in self.unlikely)
            found.append(np.full(len(each.ids), -1.0 if odd else -0.01, np.float32))
        return self._result("score", texts, found)

    def info(self) -> dict[str, Any]:
        """See `Engine.info`."""
        return {"words": sorted(self.words)}

    def read(self, ids: Sequence[int]) -> str:
        """Text of ids, one character a token; control tokens are NUL."""
        return bytes(self._bytes.get(index, 0) for index in ids).decode("latin-1")

    def write(self, text: str) -> list[int]:
        """Ids of a text."""
        return [self._ids[byte] for byte in text.encode()]

    def _judge(self, window: Window) -> Scores:
        labels = np.full((window.segments, N_LOGITS), -4, np.float32)
        for values in SLICES.values():
            labels[:, values.start] = 4
        spans = np.full((len(window.ids), len(CATEGORIES)), -4, np.float32)
        text = self.read(window.ids).lower()
        for word, category in self._unsafe(text):
            for match in re.finditer(re.escape(word), text):
                row = window.owner[match.start()]
                spans[match.start() : match.end(), CATEGORIES.index(category)] = 4
                if row >= 0:
                    labels[row, UNSAFE] = 4
                    labels[row, SLICES[category]] = -4
                    labels[row, SLICES[category].stop - 1] = 4
        return Scores(labels, spans)

    def _unsafe(self, text: str) -> list[tuple[str, str]]:
        found = list(self.words.items())
        if self.crowded and text.count(GREEDY) > 1:
            found.append((GREEDY, "harm"))
        return found

    def _continue(self, request: Request) -> Continuation:
        ids: list[int] = []
        for index in [*self._proposal(request), self._end]:
            if len(ids) == request.limit:
                return Continuation(tuple(ids), finished=False)
            if index in request.stop:
                return Continuation(tuple(ids), finished=True)
            ids.append(self._allowed(ids, index, request.barred))
        return Continuation(tuple(ids), finished=False)

    def _proposal(self, request: Request) -> list[int]:
        """The segment of the prompt, with what is marked replaced."""
        body = list(request.prompt[len(self._prefix) :])
        if self._split in body:
            body = body[body.index(self._split) + 1 :]
        if self._end in body:
            body = body[: body.index(self._end)]
        drawn = random.Random(request.seed).choice(DRAWN) if request.temperature > 0 else GREEDY
        if self.fault in INSTEAD and self.within in ("generate", "both"):
            kept = [i for i in body if i not in (self._open, self._close)]
            before, keep = INSTEAD[self.fault]
            return [*(self._ids[byte] for byte in before), *(kept if keep else [])]
        return self._replaced(body, self.write(drawn))

    def _replaced(self, body: Sequence[int], new: Sequence[int]) -> list[int]:
        found: list[int] = []
        inside = False
        for place, index in enumerate(body):
            if index == self._open:
                inside = True
                # Marks begin with the space before the word, which stays.
                found += [*self.write(" " * (self._bytes.get(body[place + 1]) == 0x20)), *new]
            elif index == self._close:
                inside = False
            elif not inside:
                found.append(index)
        return found

    def _allowed(self, ids: list[int], index: int, barred: Sequence[Ids]) -> int:
        """The id, or another byte where it would complete a barred sequence."""
        for choice in (index, *self.write("xyz")):
            end = (*ids, choice)
            if not any(end[-len(sequence) :] == sequence for sequence in barred):
                return choice
        raise ValueError("nothing is allowed here")

    def _result(self, verb: str, texts: Sequence[str], found: list[Any]) -> list[Any]:
        """Results that were right, after the fault has happened to them."""
        here = self.within == verb or (self.within == "both" and verb != "score")
        bad = [text for text in texts if here and (self.only is None or self.only in text)]
        if not bad:
            return found
        if self.fault == "raise":
            raise RuntimeError(f"cannot digest {bad}")  # nobody may see this message
        if self.fault == "hang":
            self.release.wait(30)
        spoil = SPOILED[verb].get(self.fault or "", list)
        return spoil(found)  # type: ignore[no-any-return]


def runtime(engine: ByteEngine | None = None, **settings: Any) -> Runtime:
    """What a guard runs on, with a byte engine of these settings in it."""
    return Runtime(
        engine=engine or ByteEngine(**settings),
        prompt=Prompt(tokenizer(TEMPLATE), TEMPLATE),
        calibration=Calibration(),
        bundle="bytes 1",
        bundle_hash="0" * 64,
        base_hash="1" * 64,
    )
