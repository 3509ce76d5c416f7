"""The instruction format: how text becomes the ids that the model reads, in training and in use.

The text under moderation is data. Control tokens that it spells out (`<|im_end|>`, `[/INST]`) are
encoded as plain characters, and the marks around unsafe spans are vocabulary entries that no text
encodes to, so neither can be forged.
"""

from __future__ import annotations

import re
from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from srllm_guard.engines.base import Ids, Request, Window
from srllm_guard.errors import BundleError
from srllm_guard.text.segments import Segment

if TYPE_CHECKING:
    from tokenizers import Tokenizer

Range = tuple[int, int]
"""Start and end in code points, end exclusive."""

SLACK = 24
"""Tokens that a rewrite may have beyond twice its source."""


@dataclass(frozen=True, slots=True)
class Template:
    """What stands around the text; control tokens by their names in the vocabulary."""

    before: str
    between: str
    end: str
    open_mark: str
    close_mark: str
    split_mark: str


TEMPLATES: dict[str, Template] = {
    "chatml-1": Template(
        before="<|im_start|>user\n",
        between="<|im_end|>\n<|im_start|>assistant\n",
        end="<|im_end|>",
        open_mark="<issue_start>",
        close_mark="<issue_closed>",
        split_mark="<issue_comment>",
    ),
    # The paper's format (section 4). Llama 2 has no spare tokens: bytes that text does not hold.
    "llama2-1": Template(
        before="<s>[INST] <<SYS>>\nRewrite the text so that it is safe.\n<</SYS>>\n\n",
        between=" [/INST] ",
        end="</s>",
        open_mark="<0x02>",
        close_mark="<0x03>",
        split_mark="<0x1D>",
    ),
}
"""The formats by name; a bundle's manifest names the one that it was trained with."""

_CONTROL = re.compile(
    r"<\|[a-z_]{1,32}\|>|\[/?INST\]|<</?SYS>>|</?s>|<(?:unk|pad)>|<0x[0-9A-Fa-f]{2}>", re.IGNORECASE
)
_SURROGATE = re.compile("[\ud800-\udfff]")


class Prompt:
    """One instruction format over one tokenizer. Safe to share between threads.

    Raises:
        BundleError: the format is unknown, or the vocabulary lacks one of its control tokens.
    """

    def __init__(self, tokenizer: Tokenizer, template: str) -> None:
        if template not in TEMPLATES:
            raise BundleError(
                f"Unknown prompt format {template!r}.", hint=f"Known: {', '.join(TEMPLATES)}."
            )
        self.template = template
        self._tokenizer = tokenizer
        found = TEMPLATES[template]
        tokenizer.no_padding()
        tokenizer.no_truncation()
        tokenizer.encode_special_tokens = False
        self._before = self._fixed(found.before)
        self._between = self._fixed(found.between)
        self._open = self._id(found.open_mark)
        self._close = self._id(found.close_mark)
        self._split = self._id(found.split_mark)
        self._marks = frozenset({self._open, self._close, self._split})
        self.end = self._id(found.end)
        # From here on whatever text spells is encoded as characters.
        tokenizer.encode_special_tokens = True

    @property
    def opening(self) -> Ids:
        """Ids that every window and every prompt begins with."""
        return tuple(self._before)

    def window(self, text: str, segments: Sequence[Range]) -> tuple[Window, list[Range]]:
        """Ids of consecutive segments for detection.

        Args:
            text: from the start of the first segment to the end of the last.
            segments: their ranges in `text`, in order.

        Returns:
            The window, and for each of its tokens the range of `text` that it stands for, without
            white space at its ends (empty for the prefix).
        """
        ids: list[int] = []
        ranges: list[Range] = []
        at = 0
        for end in (*(end for _, end in segments), len(text)):
            # No token reaches over the end of a segment: its ids are those it has as the last one.
            more, places = self._encode(text[at:end])
            ids += more
            ranges += [(at + first, at + last) for first, last in places]
            at = max(at, end)
        starts = [start for start, _ in segments]
        owner, trimmed = [], []
        for start, end in ranges:
            while start < end and text[start].isspace():
                start += 1
            while end > start and text[end - 1].isspace():
                end -= 1
            at = bisect_left(starts, start + 1) - 1
            inside = start < end and at >= 0 and start < segments[at][1]
            owner.append(at if inside else -1)
            trimmed.append((start, end))
        prefix = len(self._before)
        window = Window(
            ids=(*self._before, *ids), owner=(-1,) * prefix + tuple(owner), segments=len(segments)
        )
        return window, [(0, 0)] * prefix + trimmed

    def rewrite(self, segment: str, marks: Sequence[Range], context: str = "") -> Ids:
        """Ids that ask for a safe variation of `segment`, its unsafe parts marked.

        Args:
            segment: the text to rewrite.
            marks: unsafe ranges of `segment`, sorted and apart.
            context: what stands before it. Training gives some; the guard gives none, since its
                rewrites are better without (docs/lab.md).
        """
        ids = list(self._before)
        if context:
            ids += self.encode(context)
            ids.append(self._split)
        at = 0
        for start, end in marks:
            while start > at and segment[start - 1] == " ":  # tokens begin with their space
                start -= 1
            ids += self.encode(segment[at:start])
            ids += [self._open, *self.encode(segment[start:end]), self._close]
            at = end
        return (*ids, *self.encode(segment[at:]), *self._between)

    def target(self, safe: str) -> Ids:
        """Ids of the answer that training teaches, its end included."""
        return (*self.encode(safe), self.end)

    def encode(self, text: str) -> list[int]:
        """Ids of plain text; nothing in it becomes a control token or a mark."""
        return self._encode(text)[0]

    def decode(self, ids: Sequence[int]) -> str:
        """Text of ids; control tokens and marks are left out."""
        text: str = self._tokenizer.decode([i for i in ids if i not in self._marks])
        return text

    def barred(self, phrase: str, width: int = 3) -> tuple[Ids, ...]:
        """Token sequences that a text without `phrase` does not need: its runs of `width` tokens.

        Both spellings of the start, after a space and not, are covered; a phrase shorter than
        `width` tokens is barred whole.
        """
        found: dict[Ids, None] = {}
        for spelling in (phrase, " " + phrase, phrase[:1].upper() + phrase[1:]):
            ids = self.encode(spelling)
            for start in range(max(1, len(ids) - width + 1)):
                found[tuple(ids[start : start + width])] = None
        return tuple(found)

    def _encode(self, text: str) -> tuple[list[int], list[Range]]:
        text = _SURROGATE.sub("\ufffd", text)
        ids: list[int] = []
        ranges: list[Range] = []
        at = 0
        for control in _CONTROL.finditer(text):
            self._append(text, at, control.start(), ids, ranges)
            for index in range(control.start(), control.end()):
                self._append(text, index, index + 1, ids, ranges)
            at = control.end()
        self._append(text, at, len(text), ids, ranges)
        return ids, ranges

    def _append(self, text: str, start: int, end: int, ids: list[int], ranges: list[Range]) -> None:
        if start == end:
            return
        encoded = self._tokenizer.encode(text[start:end], add_special_tokens=False)
        for index, (first, last) in zip(encoded.ids, encoded.offsets, strict=True):
            if index not in self._marks:
                ids.append(index)
                ranges.append((start + first, start + last))

    def _fixed(self, text: str) -> list[int]:
        return list(self._tokenizer.encode(text, add_special_tokens=False).ids)

    def _id(self, token: str) -> int:
        index = self._tokenizer.token_to_id(token)
        if index is None:
            raise BundleError(
                f"The vocabulary has no token {token!r}, which format {self.template} needs.",
                hint="Use the base model that the bundle was trained on.",
            )
        return int(index)


def rewrite_request(prompt: Prompt, text: str, segment: Segment, marks: Sequence[Range]) -> Request:
    """One greedy rewrite of a segment of `text`; the marks are at offsets of the segment."""
    source = text[segment.start : segment.end]
    ids = prompt.encode(source)
    return Request(
        prompt=prompt.rewrite(source, marks),
        stop=frozenset({prompt.end}),
        limit=2 * len(ids) + SLACK,
        draft=tuple(ids),
    )
