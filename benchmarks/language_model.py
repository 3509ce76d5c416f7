"""A causal language model on its own: perplexity, likelihoods, and answers to a chat prompt."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch.nn import functional as F

from srllm_guard.engines.loading import find_device, load_model
from srllm_guard.models.bundle import Base, Bundle
from srllm_guard.models.store import find_base
from srllm_guard.prompt import Prompt
from srllm_guard.runtime import tokenizer

Turn = tuple[str, str]
"""What the user says and what the assistant answers."""

LONGEST = 512
"""Most tokens of an answer."""


class Chat(NamedTuple):
    """What stands around the turns in the chat format that a base was tuned on."""

    start: str
    """Before the instruction."""
    first: str
    """Between the instruction and the first text."""
    answer: str
    """Between a text and its answer."""
    again: str
    """Between an answer and the next text."""


CHATS = {
    "chatml-1": Chat(
        start="<|im_start|>system\n",
        first="<|im_end|>\n<|im_start|>user\n",
        answer="<|im_end|>\n<|im_start|>assistant\n",
        again="<|im_end|>\n<|im_start|>user\n",
    ),
    "llama2-1": Chat(
        start="<s>[INST] <<SYS>>\n",
        first="\n<</SYS>>\n\n",
        answer=" [/INST] ",
        again=" </s><s>[INST] ",
    ),
}
"""The chat formats by the bundle's prompt format, which belongs to the same family of models."""


class LanguageModel:
    """The base of a bundle, with or without the bundle's adapter.

    Args:
        bundle: names the base, and holds the adapter.
        folder: the base weights; None searches for them.
        device: "auto", "cpu" or "cuda".
        adapter: whether the adapter is merged in.

    Raises:
        GuardError: base weights are missing, or the device is.
    """

    def __init__(
        self, bundle: Bundle, folder: str | Path | None, device: str, *, adapter: bool
    ) -> None:
        base: Base = bundle.manifest.base
        weights = find_base(base, folder)
        self._device = find_device(device)
        self._model: Any = load_model(bundle if adapter else None, weights, self._device, False)
        self._tokenizer = tokenizer(weights)
        self._tokenizer.encode_special_tokens = False
        # Encodes texts: control tokens that they spell are characters and end no turn.
        self._prompt = Prompt(tokenizer(weights), bundle.manifest.prompt)
        self._chat = CHATS[bundle.manifest.prompt]
        self._end = self._prompt.end

    def log_likelihoods(self, texts: Sequence[str], batch: int = 16) -> list[tuple[float, int]]:
        """For each text the sum of its tokens' log-likelihoods, in nats, and their number.

        The end-of-turn token stands before each text, so that its first token has a past.
        """
        rows = [[self._end, *self._prompt.encode(text)] for text in texts]
        order = sorted(range(len(rows)), key=lambda n: len(rows[n]))
        found: list[tuple[float, int]] = [(0.0, 0)] * len(rows)
        for start in range(0, len(order), batch):
            numbers = order[start : start + batch]
            width = max(len(rows[n]) for n in numbers)
            ids = torch.tensor([rows[n] + [self._end] * (width - len(rows[n])) for n in numbers])
            ids = ids.to(self._device)  # [B, T]
            with torch.inference_mode():
                logits = self._model(input_ids=ids, use_cache=False).logits.float()  # [B, T, V]
            each = -F.cross_entropy(logits[:, :-1].transpose(1, 2), ids[:, 1:], reduction="none")
            for row, n in enumerate(numbers):
                count = len(rows[n]) - 1
                found[n] = (float(each[row, :count].sum()), count)
        return found

    def perplexities(self, texts: Sequence[str]) -> list[float]:
        """Perplexity of each text, a token; NaN of an empty one."""
        return [
            math.exp(min(-total / count, 50.0)) if count else math.nan
            for total, count in self.log_likelihoods(texts)
        ]

    def answers(
        self,
        system: str,
        shots: Sequence[Turn],
        texts: Sequence[str],
        batch: int = 8,
        progress: Any = None,
    ) -> list[str]:
        """Greedy answers to chat prompts: instruction, examples, then the text.

        An answer has at most twice the tokens of its text and 24, and at most `LONGEST`.
        """
        prompts = [self._asked(system, shots, text) for text in texts]
        limits = [min(LONGEST, 2 * len(self._prompt.encode(text)) + 24) for text in texts]
        order = sorted(range(len(texts)), key=lambda n: len(prompts[n]))
        found = [""] * len(texts)
        for start in range(0, len(order), batch):
            numbers = order[start : start + batch]
            width = max(len(prompts[n]) for n in numbers)
            gaps = [width - len(prompts[n]) for n in numbers]
            pairs = list(zip(numbers, gaps, strict=True))
            ids = torch.tensor([[self._end] * gap + prompts[n] for n, gap in pairs])
            mask = torch.tensor([[0] * gap + [1] * len(prompts[n]) for n, gap in pairs])
            with torch.inference_mode():
                out = self._model.generate(
                    ids.to(self._device),
                    attention_mask=mask.to(self._device),
                    max_new_tokens=max(limits[n] for n in numbers),
                    do_sample=False,
                    eos_token_id=self._end,
                    pad_token_id=self._end,
                )
            for row, n in enumerate(numbers):
                new = out[row, width:].tolist()[: limits[n]]
                new = new[: new.index(self._end)] if self._end in new else new
                found[n] = self._tokenizer.decode(new).strip()
            if progress is not None:
                progress.update(len(numbers))
        return found

    def _asked(self, system: str, shots: Sequence[Turn], text: str) -> list[int]:
        """Ids of a chat that ends where the assistant's answer begins."""
        chat, said = self._chat, self._prompt.encode
        ids = [*self._frame(chat.start), *said(system), *self._frame(chat.first)]
        for example, answer in shots:
            ids += [*said(example), *self._frame(chat.answer)]
            ids += [*said(answer), *self._frame(chat.again)]
        return [*ids, *said(text), *self._frame(chat.answer)]

    def _frame(self, text: str) -> list[int]:
        """Ids of the format's own words, control tokens among them."""
        return list(self._tokenizer.encode(text, add_special_tokens=False).ids)
