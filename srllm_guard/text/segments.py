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

    def moved(self, by: int) -> Segment:
        """The segment where the text before it is longer by `by` code points."""
        return Segment(self.start + by, self.end + by, self.kind, self.paragraph)


EMOJI = (
    "\U0001f000-\U0001faff\U0001fc00-\U0001fffd\u2600-\u27bf\u2b00-\u2bff\u2300-\u23ff"
    "\u203c\u2049\u2139\u3030\u303d"
)
"""Ranges of pictographs for a regex class; wider than Emoji_Presentation on purpose."""

LINE = re.compile(r"[^\n\r\u2028\u2029]++")
CONTENT = re.compile(rf"[^\W_]|[{EMOJI}]")
_INK = re.compile(r"\S")


def _words(text: str) -> frozenset[str]:
    return frozenset(text.split())


_QUOTE_MARK = r">[^\S\n]*+"
_LIST_MARK = r"(?:[-*+•‣◦▪●○–—]|\d{1,3}[.)]|[A-Za-z]\)|[ivxIVX]{1,5}\)|\((?:\d{1,3}|[a-z])\))\s++"
_PREFIX = re.compile(rf"\s*+(?:{_QUOTE_MARK}|{_LIST_MARK}|\[[ xX]\]\s++)*+")
_PIPE = re.compile(r"(?<!\\)\|")
_HEADING_END = re.compile(r"(?<!\s)\s++#++\Z")
HEADING = re.compile(r"#{1,6}\s++")
LIST_START = re.compile(rf"\s*+(?:{_QUOTE_MARK})*+{_LIST_MARK}")

FENCE = re.compile(r"\s*+(?:>\s*+)*+(?:(`{3,}+)(?=[^`]*+\Z)|(~{3,}+))")
FENCE_BEGUN = re.compile(r"\s*+(?:>\s*+)*+(?:`{1,2}\Z|`{3}|~{1,2}\Z|~{3})")
FENCE_END = re.compile(r"\s*+(?:>\s*+)*+(`{3,}+|~{3,}+)\s*+\Z")
INDENTED = re.compile(r"(?: {4}|\t)")
CODE_LINE = re.compile(
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
_STAMPED = re.compile(rf"\[?{_CLOCK}\]?\s?(?:[-–]\s)?(?={_NAME}(?:\s{_NAME}){{0,3}}\s?:\s)")
_NAMED = re.compile(rf"({_NAME}(?:\s{_NAME})?)\s?:\s++(?=\S)")
CLOCKED = re.compile(rf"\[?{_CLOCK}")
"""Where a line may begin like `[9:41] Stefan: hello`."""
_ROLE = re.compile(
    r"(?:\*\*)?(?:User|Assistant|System|Human|AI|Bot|USER|ASSISTANT|SYSTEM|HUMAN|BOT)"
    r"(?:\*\*:|:\*\*|:)\s++"
)
_SPEAKER = re.compile(rf"({_NAME})\s?:\s++(?=\S)")
# Words that head a line like a name does, but speak about the line or about people.
_NO_NAME = _words(
    "note notes warning error summary title subject pros cons example examples answer question "
    "result results tip update edit women men girls boys blacks whites jews muslims christians "
    "asians immigrants migrants gays lesbians liberals conservatives democrats republicans idiots"
)

_CJK_STOP = "。！？｡"
STOP = re.compile(
    rf"(?P<stop>[.!?…‽⁇⁈⁉{_CJK_STOP}]++(?:[ \t]++[.!?…]++(?=[\s\"'”’)\]]|\Z))*+)"
    r"(?P<closers>[\"'”’»›)\]}*_~]*+)"
    rf"(?P<faces>(?:\s*+(?:[{EMOJI}\u200d\ufe0f]++|[:;=]['-]?[()DPpOo/|](?=\s|\Z)))*+)"
)
NEXT = re.compile(r"\s++[\"'“‘«(\[*_¿¡]{0,4}+(\w{0,24})")
BEFORE = re.compile(r"[^\s\"“”«»(\[{*_/—–-]*\Z")
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
STARTERS = _words(
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


Range = tuple[int, int]
"""Start and end in code points, end exclusive."""


def segments(text: str, max_chars: int = 600) -> tuple[Segment, ...]:
    """Split a text into sentences and code blocks, in order and without overlap.

    Lines are always boundaries. A sentence longer than `max_chars` code points is cut at clause
    punctuation, else at white space, else hard; code blocks are never cut. Text without a letter,
    digit or emoji gives no segment.

    Raises:
        ValueError: `max_chars` is below 1.
    """
    from srllm_guard.text.incremental import Segmenter

    return tuple(Segmenter(max_chars).read(text, final=True))


def cells(text: str, start: int, end: int, speaker: bool) -> Iterator[Range]:
    """Yield the parts of a line that are prose: its text without markers, or its table cells.

    `speaker` says whether a name before a colon is that of a speaker. A name is a part of its own:
    by its form it cannot be told from an insult, so it is judged as well.
    """
    start, end = unmarked(text, start, end)
    if heading := HEADING.match(text, start, end):
        start, end = trim(text, heading.end(), end)
        closing = _HEADING_END.search(text, start, end)
        end = closing.start() if closing else end
    if end - start > 1 and text[start] == "|" == text[end - 1]:
        cell = start + 1
        for pipe in _PIPE.finditer(text, cell, end):
            yield trim(text, cell, pipe.start())
            cell = pipe.end()
        return
    name = None
    if stamped := _STAMPED.match(text, start, end):
        start = stamped.end()
        name = _NAMED.match(text, start, end)
    elif role := _ROLE.match(text, start, end):
        start = role.end()
    elif speaker:
        name = _SPEAKER.match(text, start, end)
    if name and _is_name(name.group(1)):
        yield name.span(1)
        start = name.end()
    yield start, end


def unmarked(text: str, start: int, end: int) -> Range:
    """A line without the marks of lists and quotes that it begins with."""
    prefix = _PREFIX.match(text, start, end)
    return trim(text, prefix.end() if prefix else start, end)


def names_speaker(text: str, start: int, end: int) -> bool:
    """Whether a line is like `Stefan: hello`."""
    name = _SPEAKER.match(text, start, end)
    return name is not None and _is_name(name.group(1))


def may_name(words: str) -> bool:
    """Whether words may be the name of a speaker: none of them speaks about people or the line."""
    return _NO_NAME.isdisjoint(words.lower().split())


def _is_name(words: str) -> bool:
    return may_name(words) and all(word[0].isupper() for word in words.split())


def ends_sentence(text: str, begin: int, end: int, match: re.Match[str]) -> bool:
    stop, closers, faces = match.group("stop", "closers", "faces")
    following = NEXT.match(text, match.end(), end)
    if following is None:
        return match.end() >= end or stop[-1] in _CJK_STOP
    word = following.group(1)
    if closers and word[:1].islower():
        return False  # "Go away!" he said.
    if stop != "." or faces:
        return True
    last = BEFORE.search(text[max(begin, match.start() - 40) : match.start()].rstrip())
    return last is None or not is_abbreviation(last.group().lstrip("'‘’"), word)


def is_abbreviation(last: str, word: str) -> bool:
    """Whether the full stop between `last` and `word` belongs to an abbreviation."""
    low = last.lower()
    if low in _NEVER_LAST or (low in _BEFORE_DIGIT and word[:1].isdigit()):
        return True
    capital = word[:1].isupper()
    starter = capital and word.lower() in STARTERS
    if last in _BEFORE_CAPITAL:
        return capital and not starter
    if len(last) == 1 and last.isalpha():
        return last != "I" and not starter
    if low in ("a.m", "p.m", "etc"):
        return not capital
    if low in _MAYBE_LAST:
        return word != "" and not starter
    return bool(_DOTTED.match(last)) and not starter


def unwrap(text: str, start: int, end: int) -> Range:
    """Leave outside the emphasis, quotation marks and brackets that wrap or half wrap a range."""
    start, end = trim(text, start, end)
    for _ in range(6 if end - start > 1 else 0):
        inner = trim(text, *_inner(text, start, end))
        if inner == (start, end) or not CONTENT.search(text, *inner):
            break
        start, end = inner
    return start, end


def _inner(text: str, start: int, end: int) -> Range:
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


def cut_before(text: str, start: int, limit: int) -> int:
    """Where a sentence that is too long is cut, at most at `limit`."""
    third = start + (limit - start) // 3
    cut = _last_end(_CLAUSE, text, start, limit, third)
    return cut or _last_end(_SPACES, text, start, limit, start) or _hard_cut(text, start, limit)


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


def trim(text: str, start: int, end: int) -> Range:
    """Shrink a range to its first and last character that is not white space."""
    if first := _INK.search(text, start, end):
        while text[end - 1].isspace():
            end -= 1
        return first.start(), end
    return end, end
