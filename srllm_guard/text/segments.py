"""Cut a text into sentence segments that know where they stand.

A segment is what the model judges and rewrites; everything outside of the segments (white space,
line ends, list and quote markers, table pipes, wrapping quotation marks) is kept to the byte, so
structure never passes through a model. Time is linear in the text for any input.
"""

from __future__ import annotations

import re
import unicodedata
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["Segment", "segments"]


@dataclass(frozen=True, slots=True)
class Segment:
    """One sentence or one block of code, as a range of code points of the text."""

    start: int
    """First code point of the segment."""
    end: int
    """One past the last code point; always greater than `start`."""
    kind: Literal["prose", "code"]
    """"code" for a fenced or indented block as a whole, "prose" for a sentence."""
    paragraph: int
    """Number of the block of lines that holds it, from 0; blank lines part the blocks."""


EMOJI = (
    "\U0001f000-\U0001faff\U0001fc00-\U0001fffd\u2600-\u27bf\u2b00-\u2bff\u2300-\u23ff"
    "\u203c\u2049\u2139\u3030\u303d"
)
"""Ranges of pictographs for a regex class; wider than Emoji_Presentation on purpose."""

_LINE = re.compile(r"[^\n\r\u2028\u2029]++")
_CONTENT = re.compile(rf"[^\W_]|[{EMOJI}]")
_INK = re.compile(r"\S")


def _words(text: str) -> frozenset[str]:
    return frozenset(text.split())


_QUOTE_MARK = r">[^\S\n]*+"
_LIST_MARK = r"(?:[-*+•‣◦▪●○–—]|\d{1,3}[.)]|[A-Za-z]\)|[ivxIVX]{1,5}\)|\((?:\d{1,3}|[a-z])\))\s++"
_PREFIX = re.compile(rf"\s*+(?:{_QUOTE_MARK}|{_LIST_MARK}|\[[ xX]\]\s++)*+")
_PIPE = re.compile(r"(?<!\\)\|")
_HEADING_END = re.compile(r"(?<!\s)\s++#++\Z")
_HEADING = re.compile(r"#{1,6}\s++")
_LIST_START = re.compile(rf"\s*+(?:{_QUOTE_MARK})*+{_LIST_MARK}")

_FENCE = re.compile(r"\s*+(?:>\s*+)*+(?:(`{3,}+)(?=[^`]*+\Z)|(~{3,}+))")
_FENCE_END = re.compile(r"\s*+(?:>\s*+)*+(`{3,}+|~{3,}+)\s*+\Z")
_INDENTED = re.compile(r"(?: {4}|\t)")
_CODE_LINE = re.compile(
    r"\s*+(?:"
    r".*[;{}]\s*\Z"  # ends like a statement or a block
    r"|[\w.\[\]\"']++\s*+[-+*/|&:]?=(?:=|\s|\w)"  # an assignment
    r"|(?:[\w.]++\s)?[\w.]++\([^)]*+\)*+:?\s*+\Z"  # a call
    r"|(?:import|from)\s++[\w.]++(?:\s++(?:import|as)\b|\s*+\Z)"
    r"|(?:def|class|function|fn|func)\s++\w++\s*+[({:]"
    r"|(?:return|raise)\b[^.!?]*+\Z"
    r"|(?:>>>|\$|\#include|//|/\*|</?\w++)"
    r")"
)

_CLOCK = r"(?:\d{1,4}[-/.]\d{1,2}[-/.]\d{1,4},?\s)?\d{1,2}:\d{2}(?::\d{2})?(?:\s?[AaPp]\.?[Mm]\.?)?"
_NAME = r"[^\W\d_][\w.'’-]{0,30}"
_STAMPED = re.compile(rf"\[?{_CLOCK}\]?\s?(?:[-–]\s)?({_NAME}(?:\s{_NAME}){{0,3}})\s?:\s++")
_ROLE = re.compile(
    r"(?:\*\*)?(?:User|Assistant|System|Human|AI|Bot|USER|ASSISTANT|SYSTEM|HUMAN|BOT)"
    r"(?:\*\*:|:\*\*|:)\s++"
)
_SPEAKER = re.compile(rf"({_NAME})\s?:\s++(?=\S)")
# Words that head a line like a name does, but speak about the line or about people: they stay in.
_NO_NAME = _words(
    "note notes warning error summary title subject pros cons example examples answer question "
    "result results tip update edit women men girls boys blacks whites jews muslims christians "
    "asians immigrants migrants gays lesbians liberals conservatives democrats republicans idiots"
)

_CJK_STOP = "。！？｡"
_STOP = re.compile(
    rf"(?P<stop>[.!?…‽⁇⁈⁉{_CJK_STOP}]++(?:[ \t]++[.!?…]++(?=[\s\"'”’)\]]|\Z))*+)"
    r"(?P<closers>[\"'”’»›)\]}*_~]*+)"
    rf"(?P<faces>(?:\s*+(?:[{EMOJI}\u200d\ufe0f]++|[:;=]['-]?[()DPpOo/|](?=\s|\Z)))*+)"
)
_NEXT = re.compile(r"\s++[\"'“‘«(\[*_¿¡]{0,4}+(\w{0,24})")
_BEFORE = re.compile(r"[^\s\"“”«»(\[{*_/—–-]*\Z")
_DOTTED = re.compile(r"(?:[^\W\d_]\.)+[^\W\d_]\Z")

_NEVER_LAST = _words("mr mrs ms mx dr prof messrs mme e.g i.e eg vs cf viz approx ca")
_BEFORE_CAPITAL = _words(
    "Gen Rep Sen Col Hon Rev Fr Pres Gov Capt Cpt Lt Sgt Maj Cmdr Adm Supt St Mt Ft Sir Atty Dir "
    "Det Insp Amb Sec al Mlle"
)
_BEFORE_DIGIT = _words(
    "no nos nr fig figs p pp vol ch sec art para eq ed ver jan feb mar apr jun jul aug sep sept "
    "oct nov dec"
)
_MAYBE_LAST = _words("inc ltd co corp jr sr bros dept univ est ave blvd rd assn ph.d m.sc b.sc")
_STARTERS = _words(
    "the a an i we he she it they you this that these those there here but and so or if when "
    "what why how who where my your his her our their its in on at no not yes as for after "
    "before while then now one some all most many both"
)

_EMPHASIS = ("***", "**", "__", "~~", "*", "_")
_PAIRS = {'"': '"', "“": "”", "„": "“”", "«": "»", "‹": "›", "'": "'", "‘": "’"}
_OPENERS = {"”": "“", "»": "«"}
_CLAUSE = re.compile(r"[,;:—–]\s")
_JOINERS = "\u200d\ufe0e\ufe0f\U0001f3fb\U0001f3fc\U0001f3fd\U0001f3fe\U0001f3ff"
_SPACES = re.compile(r"\s++")


_Line = tuple[int, int, bool]  # start, end, whether a blank line comes before


def segments(text: str, max_chars: int = 600) -> tuple[Segment, ...]:
    """Split a text into sentences and code blocks, in order and without overlap.

    Lines are always boundaries. A sentence longer than `max_chars` code points is cut at clause
    punctuation, else at white space, else hard; code blocks are never cut. Text without a letter,
    digit or emoji gives no segment.

    Raises:
        ValueError: `max_chars` is below 1.
    """
    if max_chars < 1:
        raise ValueError(f"max_chars must be at least 1, got {max_chars}")
    lines = [*_lines(text)]
    speakers = _has_speakers(text, lines)
    found: list[Segment] = []
    paragraph = 0
    in_list = is_code = False
    at = past = 0
    while at < len(lines):
        line_start, line_end, after_blank = lines[at]
        paragraph += at > 0 and after_blank
        if at >= past:
            is_code, past = _code_block(text, lines, at, in_list)
        if is_code:
            start, end = _trim(text, line_start, lines[past - 1][1])
            found.append(Segment(start, end, "code", paragraph))
            at = past
            continue
        in_list = bool(_LIST_START.match(text, line_start, line_end)) or (
            in_list and bool(_INDENTED.match(text, line_start, line_end))
        )
        for cell_start, cell_end in _cells(text, line_start, line_end, speakers):
            for start, end in _sentences(text, cell_start, cell_end):
                pieces = _pieces(text, start, end, max_chars)
                found.extend(Segment(*piece, "prose", paragraph) for piece in pieces)
        at += 1
    return tuple(found)


def _lines(text: str) -> Iterator[_Line]:
    """Yield the lines that hold more than white space."""
    last = 0
    blank = False
    for match in _LINE.finditer(text):
        start, end = match.span()
        breaks = text[last:start]
        blank = blank or len(breaks) > 2 or (len(breaks) == 2 and breaks != "\r\n")
        last = end
        if match.group().isspace():
            blank = True
            continue
        yield start, end, blank
        blank = False


def _code_block(text: str, lines: list[_Line], at: int, in_list: bool) -> tuple[bool, int]:
    """Whether a code block starts at line `at`, and the index of the line that is judged next."""
    if fence := _FENCE.match(text, *lines[at][:2]):
        mark = fence.group(1) or fence.group(2)
        for index in range(at + 1, len(lines)):
            closing = _FENCE_END.match(text, *lines[index][:2])
            if closing and closing.group(1).startswith(mark):
                return True, index + 1
        # A fence that is never closed hides nothing: what follows it is judged.
        return True, at + 1
    past, alike = at, 0
    if not in_list and (at == 0 or lines[at][2]):
        while past < len(lines) and _INDENTED.match(text, *lines[past][:2]):
            alike += bool(_CODE_LINE.match(text, *lines[past][:2]))
            past += 1
    return alike > 0 and 2 * alike >= past - at, max(past, at + 1)


def _has_speakers(text: str, lines: list[_Line]) -> bool:
    """Whether two lines or more, and a third of all lines, start like `Stefan: hello`."""
    count = sum(_speaker_end(text, start, end) > start for start, end, _ in lines)
    return count > 1 and 3 * count >= len(lines)


def _speaker_end(text: str, start: int, end: int) -> int:
    if match := _SPEAKER.match(text, start, end):
        name = match.group(1)
        return match.end() if name[0].isupper() and name.lower() not in _NO_NAME else start
    return start


def _cells(text: str, start: int, end: int, speakers: bool) -> Iterator[tuple[int, int]]:
    """Yield the parts of a line that are prose: its text without markers, or its table cells."""
    prefix = _PREFIX.match(text, start, end)
    start, end = _trim(text, prefix.end() if prefix else start, end)
    if heading := _HEADING.match(text, start, end):
        start, end = _trim(text, heading.end(), end)
        closing = _HEADING_END.search(text, start, end)
        end = closing.start() if closing else end
    if end - start > 1 and text[start] == "|" == text[end - 1]:
        cell = start + 1
        for pipe in _PIPE.finditer(text, cell, end):
            yield _trim(text, cell, pipe.start())
            cell = pipe.end()
        return
    stamped = _STAMPED.match(text, start, end)
    if stamped and all(word[0].isupper() for word in stamped.group(1).split()):
        start = stamped.end()
    elif role := _ROLE.match(text, start, end):
        start = role.end()
    elif speakers:
        start = _speaker_end(text, start, end)
    yield start, end


def _sentences(text: str, start: int, end: int) -> Iterator[tuple[int, int]]:
    """Yield the sentences of one line, without the marks that wrap them."""
    start, end = _unwrap(text, start, end)
    begin = judged = start
    for match in _STOP.finditer(text, start, end):
        if _ends_sentence(text, begin, end, match):
            # A piece of pure punctuation is no sentence: it joins what follows it.
            if _CONTENT.search(text, judged, match.end()):
                yield _unwrap(text, begin, match.end())
                begin = match.end()
            judged = match.end()
    if _CONTENT.search(text, begin, end):
        yield _unwrap(text, begin, end)


def _ends_sentence(text: str, begin: int, end: int, match: re.Match[str]) -> bool:
    stop, closers, faces = match.group("stop", "closers", "faces")
    following = _NEXT.match(text, match.end(), end)
    if following is None:
        return match.end() >= end or stop[-1] in _CJK_STOP
    word = following.group(1)
    if closers and word[:1].islower():
        return False  # "Go away!" he said.
    if stop != "." or faces:
        return True
    last = _BEFORE.search(text[max(begin, match.start() - 40) : match.start()].rstrip())
    return last is None or not _is_abbreviation(last.group().lstrip("'‘’"), word)


def _is_abbreviation(last: str, word: str) -> bool:
    """Whether the full stop between `last` and `word` belongs to an abbreviation."""
    low = last.lower()
    if low in _NEVER_LAST or (low in _BEFORE_DIGIT and word[:1].isdigit()):
        return True
    capital = word[:1].isupper()
    starter = capital and word.lower() in _STARTERS
    if last in _BEFORE_CAPITAL:
        return capital and not starter
    if len(last) == 1 and last.isalpha():
        return last != "I" and not starter
    if low in ("a.m", "p.m", "etc"):
        return not capital
    if low in _MAYBE_LAST:
        return word != "" and not starter
    return bool(_DOTTED.match(last)) and not starter


def _unwrap(text: str, start: int, end: int) -> tuple[int, int]:
    """Leave outside the emphasis, quotation marks and brackets that wrap or half wrap a range."""
    start, end = _trim(text, start, end)
    for _ in range(6 if end - start > 1 else 0):
        inner = _trim(text, *_inner(text, start, end))
        if inner == (start, end) or not _CONTENT.search(text, *inner):
            break
        start, end = inner
    return start, end


def _inner(text: str, start: int, end: int) -> tuple[int, int]:
    body = text[start:end]
    first, last = body[0], body[-1]
    for mark in _EMPHASIS:
        width = len(mark)
        if len(body) > 2 * width and body.startswith(mark) and body.endswith(mark):
            return (start, end) if mark in body[width:-width] else (start + width, end - width)
    if last in _PAIRS.get(first, "") and not ({first, last} & set(body[1:-1])):
        return start + 1, end - 1
    if first == "(" and last == ")" and body[-2] in ".!?…" and body.count(")") == 1:
        return start + 1, end - 1
    # Half a pair: the other half stands in another sentence.
    if (first == '"' and body.count('"') == 1) or (first in "“«„" and not set("”»") & set(body)):
        return start + 1, end
    if (last == '"' and body.count('"') == 1) or _OPENERS.get(last, last) not in body:
        return (start, end) if body[-2].isdigit() else (start, end - 1)  # 5'10" is a length
    if first == "(" and ")" not in body and body[1].isalnum():
        return start + 1, end
    if last == ")" and "(" not in body and body[-2] in ".!?…":
        return start, end - 1
    return start, end


def _pieces(text: str, start: int, end: int, max_chars: int) -> Iterator[tuple[int, int]]:
    """Yield a sentence in pieces of at most `max_chars` code points."""
    while end - start > max_chars:
        limit = start + max_chars
        cut = _last_end(_CLAUSE, text, start, limit, start + max_chars // 3)
        cut = cut or _last_end(_SPACES, text, start, limit, start) or _hard_cut(text, start, limit)
        piece = _trim(text, start, cut)
        if _CONTENT.search(text, *piece):
            yield piece
        start, end = _trim(text, cut, end)
    if _CONTENT.search(text, start, end):
        yield start, end


def _last_end(pattern: re.Pattern[str], text: str, start: int, limit: int, least: int) -> int:
    matches = pattern.finditer(text, start, limit)
    return max((match.end() for match in matches if match.end() > least), default=0)


def _hard_cut(text: str, start: int, limit: int) -> int:
    """A cut at `limit` or a little before it, so that no cluster is torn where that can be."""
    for cut in range(limit, max(start, limit - 32), -1):
        joined = unicodedata.combining(text[cut]) or text[cut] in _JOINERS
        pair = "\ud800" <= text[cut - 1] <= "\udbff" and "\udc00" <= text[cut] <= "\udfff"
        if not (joined or pair or text[cut - 1] == "\u200d"):
            return cut
    return limit


def _trim(text: str, start: int, end: int) -> tuple[int, int]:
    """Shrink a range to its first and last character that is not white space."""
    if first := _INK.search(text, start, end):
        while text[end - 1].isspace():
            end -= 1
        return first.start(), end
    return end, end
