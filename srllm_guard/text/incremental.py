"""Segmentation of a text that grows: a segment is told once nothing that follows can change it."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence

from srllm_guard.text.segments import (
    BEFORE,
    CLOCKED,
    CODE_LINE,
    CONTENT,
    FENCE,
    FENCE_BEGUN,
    FENCE_END,
    HEADING,
    INDENTED,
    LINE,
    LIST_START,
    NEXT,
    STARTERS,
    STOP,
    Range,
    Segment,
    cells,
    cut_before,
    ends_sentence,
    is_abbreviation,
    names_speaker,
    trim,
    unmarked,
    unwrap,
)

NEAR = 2
"""A name before a colon is that of a speaker if one of so many lines before or behind has one."""

LONGEST_NAME = 40
"""Characters of a line that tell whether it begins with the name of a speaker."""

LOOK_AHEAD = 5
"""Characters behind the end of a sentence that tell that no smiley follows it."""

MOST_WRAPS = 32
"""More characters than the marks around a sentence have."""

_WRAPPERS = {'"': '"', "'": "'", "“": "”", "‘": "’", "«": "»", "‹": "›", "(": ")", "„": ""}
_EMPHASIS = re.compile(r"\*++|_++|~++")
_WORD = re.compile(r"\w")
_BEHIND = re.compile(r"\s*+")

_Line = tuple[int, int, bool]  # start, end, whether a blank line comes before


class Segmenter:
    """Tells the segments of one text, which may grow from call to call.

    What it has told never changes. Held back is the sentence that is not complete, and what later
    lines have a say in: a block of code until it is closed, a line that begins with a mark which
    may wrap all of it, a table row, the first lines of what may be a chat.

    Raises:
        ValueError: `max_chars` is below 1.
    """

    def __init__(self, max_chars: int = 600) -> None:
        if max_chars < 1:
            raise ValueError(f"max_chars must be at least 1, got {max_chars}")
        self._most = max_chars
        self._last = 0  # where the last line that is done with ends
        self._first = True  # whether no line came yet
        self._paragraph = 0
        self._in_list = False
        self._prose_until = 0  # lines up to here were found to be no code
        self._torn = ""  # the fence that `cut` left open
        self._unnamed = NEAR  # how many lines there were since one began with a name
        self._open = False  # whether the beginning of the line is told
        self._begin = self._judged = self._piece = 0  # of the sentence at hand

    def read(self, text: str, *, final: bool = False) -> list[Segment]:
        """The next segments.

        Args:
            text: the whole text as far as it is known; it begins with that of the last call.
            final: nothing follows; the segmenter is of no use afterwards.
        """
        found: list[Segment] = []
        lines = [*_lines(text, self._last)]
        at = 0
        while at < len(lines):
            start, end, after_blank = lines[at]
            whole = final or end < len(text)
            if not self._open:
                block = self._code(text, lines, at, final)
                if block is None:
                    break
                is_code, past = block
                if is_code:
                    self._paragraph += after_blank and not self._first
                    where = trim(text, start, lines[past - 1][1])
                    found.append(Segment(*where, "code", self._paragraph))
                    self._pass(lines[past - 1][1], past - at)
                    at = past
                    continue
                if past > at + 1:
                    self._prose_until = lines[past - 1][1]
            speaker = self._speaker(text, lines, at, final)
            if speaker is None:
                break
            paragraph = self._paragraph + (after_blank and not self._first)
            tell = self._line if whole else self._beginning
            ranges = tell(text, start, end, speaker)
            found.extend(Segment(*where, "prose", paragraph) for where in ranges)
            if not whole:
                break
            self._paragraph = paragraph
            self._in_list = bool(LIST_START.match(text, start, end)) or (
                self._in_list and bool(INDENTED.match(text, start, end))
            )
            self._pass(end, 1)
            if _is_named(text, start, end):
                self._unnamed = 0
            at += 1
        return found

    def cut(self, text: str) -> list[Segment]:
        """Tell all segments as if the text ended here; what follows begins a line of its own."""
        first = next(iter(_lines(text, self._last)), None)
        fence = FENCE.match(text, *first[:2]) if first and not self._open else None
        found = self.read(text, final=True)
        if fence:
            self._torn = fence.group(1) or fence.group(2)
        self._pass(len(text), 0)
        return found

    def forget(self, count: int) -> None:
        """The text comes without its first `count` characters from now on."""
        self._last -= count
        self._prose_until -= count
        self._begin -= count
        self._judged -= count
        self._piece -= count

    @property
    def needed(self) -> int:
        """Where what is still looked at begins."""
        return self._last

    def _pass(self, end: int, lines: int) -> None:
        """Leave lines behind."""
        self._last, self._first, self._open = end, False, False
        self._unnamed += lines

    def _code(
        self, text: str, lines: Sequence[_Line], at: int, final: bool
    ) -> tuple[bool, int] | None:
        """Whether code begins at a line, and the line that is judged next; None: not known yet."""
        start, end, _ = lines[at]
        if start < self._prose_until:
            return False, at + 1
        if not final and end == len(text) and FENCE_BEGUN.match(text, start, end):
            return None
        if self._torn:
            closed = _closes(text, lines[at], self._torn)
            self._torn = "" if closed else self._torn
            return closed, at + 1
        if fence := FENCE.match(text, start, end):
            mark = fence.group(1) or fence.group(2)
            for index in range(at + 1, len(lines)):
                if _closes(text, lines[index], mark):
                    sure = final or lines[index][1] < len(text)
                    return (True, index + 1) if sure else None
            # A fence that is never closed hides nothing: what follows it is judged.
            return (True, at + 1) if final else None
        return self._indented(text, lines, at, final)

    def _indented(
        self, text: str, lines: Sequence[_Line], at: int, final: bool
    ) -> tuple[bool, int] | None:
        """`_code` of lines that begin with white space: they are if half of them look like it."""
        past, alike = at, 0
        after_blank = lines[at][2]
        if not self._in_list and (self._first or after_blank):
            while past < len(lines) and INDENTED.match(text, *lines[past][:2]):
                alike += bool(CODE_LINE.match(text, *lines[past][:2]))
                past += 1
            if past > at and past == len(lines) and not final:
                return None
        return alike > 0 and 2 * alike >= past - at, max(past, at + 1)

    def _speaker(self, text: str, lines: Sequence[_Line], at: int, final: bool) -> bool | None:
        """Whether a name that the line begins with is that of a speaker; None: not known yet."""
        start, end, _ = lines[at]
        if self._unnamed < NEAR:
            return True
        if self._open or not _is_named(text, start, end):
            return False
        for start, end, _ in lines[at + 1 : at + 1 + NEAR]:
            if _is_named(text, start, end):
                return True
            if not final and end == len(text) and end - start < LONGEST_NAME:
                return None
        return None if len(lines) <= at + NEAR and not final else False

    def _beginning(self, text: str, start: int, end: int, speaker: bool) -> list[Range]:
        """The segments of a line that may go on."""
        if self._open:
            return [*self._sentences(text, end, whole=False)]
        first, end = unmarked(text, start, end)
        if first == end or text[first] == "|" or HEADING.match(text, first, end):
            return []
        if CLOCKED.match(text, first, end):
            return []
        *name, (first, _) = cells(text, start, end, speaker)
        if first == end or not _is_unwrapped(text, first, end):
            return []
        self._begin = self._judged = self._piece = first
        found = [*name, *self._sentences(text, end, whole=False)]
        # Before a first sentence is told, what the line begins with may be part of a longer mark.
        self._open = bool(found)
        return found

    def _line(self, text: str, start: int, end: int, speaker: bool) -> list[Range]:
        """The segments of a line that is complete, but for those that were told."""
        found: list[Range] = []
        for cell in cells(text, start, end, speaker):
            first, last = unwrap(text, *cell)
            if not self._open:
                self._begin = self._judged = self._piece = first
            found += self._sentences(text, last, whole=True)
        return found

    def _sentences(self, text: str, end: int, *, whole: bool) -> Iterator[Range]:
        """The sentences from the one at hand on, without the marks that wrap them."""
        limit = end
        for match in STOP.finditer(text, self._judged, end):
            if not whole and not _is_sure(text, self._begin, end, match):
                limit = match.start()
                break
            if ends_sentence(text, self._begin, end, match):
                # A piece of pure punctuation is no sentence: it joins what follows it.
                if CONTENT.search(text, self._judged, match.end()):
                    yield from self._pieces(text, *unwrap(text, self._begin, match.end()), 0)
                    self._begin = self._piece = match.end()
                self._judged = match.end()
        if whole:
            if CONTENT.search(text, self._begin, end):
                yield from self._pieces(text, *unwrap(text, self._begin, end), 0)
            return
        first, last = trim(text, self._begin, limit)
        if last - first > self._most + MOST_WRAPS and not _is_wrapper(text[first]):
            yield from self._pieces(text, first, last, MOST_WRAPS)

    def _pieces(self, text: str, start: int, end: int, slack: int) -> Iterator[Range]:
        """Yield a sentence in pieces, but for those that were told.

        Args:
            text: the text.
            start: of the sentence.
            end: of it.
            slack: 0 for a complete one; else only pieces are told that are followed by so much.
        """
        start = max(start, self._piece)
        while end - start > self._most + slack:
            cut = cut_before(text, start, start + self._most)
            piece = trim(text, start, cut)
            if CONTENT.search(text, *piece):
                yield piece
            start, end = trim(text, cut, end)
            self._piece = start
        if not slack and CONTENT.search(text, start, end):
            yield start, end


def _lines(text: str, last: int) -> Iterator[_Line]:
    """Yield the lines behind `last` that hold more than white space."""
    blank = False
    for match in LINE.finditer(text, last):
        start, end = match.span()
        breaks = text[last:start]
        blank = blank or len(breaks) > 2 or (len(breaks) == 2 and breaks != "\r\n")
        last = end
        if match.group().isspace():
            blank = True
            continue
        yield start, end, blank
        blank = False


def _closes(text: str, line: _Line, mark: str) -> bool:
    """Whether a line closes a fence."""
    closing = FENCE_END.match(text, *line[:2])
    return closing is not None and closing.group(1).startswith(mark)


def _is_named(text: str, start: int, end: int) -> bool:
    if text.find(":", start, end) < 0:
        return False
    start, end = unmarked(text, start, end)
    return names_speaker(text, start, end)


def _is_wrapper(sign: str) -> bool:
    return sign in _WRAPPERS or sign in "*_~"


def _is_unwrapped(text: str, start: int, end: int) -> bool:
    """Whether no mark that begins at `start` can wrap the line, whatever follows in it."""
    if not _is_wrapper(text[start]):
        return True
    run = _EMPHASIS.match(text, start, end)
    closing = run.group() if run else _WRAPPERS[text[start]]
    at = text.find(closing, start + len(closing), end) if closing else -1
    return at >= 0 and _WORD.search(text, at + len(closing), end) is not None


def _is_sure(text: str, begin: int, end: int, match: re.Match[str]) -> bool:
    """Whether nothing behind `end` can change what follows from a stop."""
    following = NEXT.match(text, match.end(), end)
    if following is None or not following.group(1):
        space = _BEHIND.match(text, match.end(), end)
        behind = space.end() if space else match.end()
        return end - behind >= LOOK_AHEAD and CONTENT.search(text, behind, end) is not None
    word = following.group(1)
    stop, faces = match.group("stop", "faces")
    if following.end() < end or stop != "." or faces:
        return True
    # The word may go on, which matters behind what may be an abbreviation.
    last = BEFORE.search(text[max(begin, match.start() - 40) : match.start()].rstrip())
    if last is None:
        return True
    ends = [f"{word}zz", *(word + s[len(word) :] for s in STARTERS if s.startswith(word.lower()))]
    return len({is_abbreviation(last.group().lstrip("'‘’"), each) for each in ends}) == 1
