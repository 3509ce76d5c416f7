"""Find the parts of a text that a rewrite must carry over unchanged.

Code, addresses, paths, numbers with their units, dates, mentions and placeholders are facts or
machinery: a rewrite that changes one of them is wrong, however polite it is. `protected` marks
them, `missing` says which of them a rewrite lost. All patterns are linear in the text: they start
only where a token starts and use possessive quantifiers.
"""

from __future__ import annotations

import re
from collections import defaultdict
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, get_args

from srllm_guard.text.confusables import AT_WORDS
from srllm_guard.text.segments import segments

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from srllm_guard.policy import Policy
    from srllm_guard.prompt import Range
    from srllm_guard.results import Span

__all__ = ["Kind", "Protected", "missing", "protected", "unprotected"]

Kind = Literal[
    "code", "url", "email", "path", "date", "number", "mention", "hashtag", "placeholder",
    "quotation",
]  # fmt: skip


@dataclass(frozen=True, slots=True)
class Protected:
    """A part of a text that must survive a rewrite, as a range of code points."""

    start: int
    """First code point."""
    end: int
    """One past the last code point; always greater than `start`."""
    kind: Kind
    """What it is; see `Kind`."""


_DOMAIN_ENDS = (
    "com|org|net|edu|gov|mil|int|info|biz|dev|app|io|ai|gg|xyz|eu|uk|de|fr|nl|ch|es|pl|au|ca|jp|cn"
    "|br|ru|example|test|(?:me|to|it|us|tv|ly|at|be|co|in|so|be|gl)(?=/)"
)
_URL = re.compile(
    r"(?<!\w)(?:(?:https?|ftps?|sftp|ssh|git|file|wss?)://|mailto:|tel:(?=[+\d])|www\.)"
    r"[^\s<>\"“”«»{}|\\^`]++"
    rf"|(?<![\w@.%+-])(?:[a-zA-Z0-9-]++\.)+(?:{_DOMAIN_ENDS})\b(?!@)"
    r"(?::\d{1,5})?(?:[/?#][^\s<>\"“”«»{}|\\^`]*+)?"
)
_EMAIL = re.compile(r"(?<![\w.+%-])[\w.+%-]++@[\w-]++(?:\.[\w-]++)+")

_FILE = re.compile(r"(?<![\w./\\@%+~<-])[\w@%+~-]*+[./][\w.@%+~/-]++")
_FILE_ENDS = re.compile(
    r"\.(?:py|pyi|js|ts|tsx|jsx|txt|md|rst|json|jsonl|ya?ml|toml|csv|tsv|xml|html?|css|cpp|hpp|rs"
    r"|java|kt|rb|sh|bat|ps1|pdf|docx?|xlsx?|pptx?|png|jpe?g|gif|svg|webp|mp[34]|wav|zip|gz|tgz"
    r"|tar|7z|exe|dll|log|ini|cfg|conf|lock|ipynb|parquet|sql|db|bak|env|onnx|gguf|safetensors)\Z",
    re.IGNORECASE,
)
_WINDOWS = re.compile(r"(?<![\w\\])(?:[A-Za-z]:\\|\\\\\w[\w.-]*+\\)[^\s\"<>|?*:]*+")

_MONTH = (
    r"(?:Jan(?:uary)?|Feb(?:ruary)?|Mar(?:ch)?|Apr(?:il)?|May|June?|July?|Aug(?:ust)?"
    r"|Sept?(?:ember)?|Oct(?:ober)?|Nov(?:ember)?|Dec(?:ember)?|january|february|april|june|july"
    r"|august|september|october|november|december)\b\.?"
)
_DAY = r"\d{1,2}(?:st|nd|rd|th)?"
_AM = r"[ap](?:m|\.m\.?)(?!\w)"
_DATE = re.compile(
    r"(?<![\w.])(?:"
    r"\d{4}-\d{2}-\d{2}(?:[T ]\d{2}:\d{2}(?::\d{2}(?:\.\d{1,9})?)?(?:Z|[+-]\d{2}:?\d{2})?)?(?!\d)"
    rf"|{_DAY}\s{{1,2}}(?:of\s)?{_MONTH}(?:,?\s\d{{4}}(?!\d))?"
    rf"|{_MONTH}\s{{1,2}}(?:{_DAY}(?!\w)(?:,?\s\d{{4}}(?!\d))?|\d{{4}}(?!\w))"
    r"|\d{1,2}([/.-])\d{1,2}\1(?:\d{4}|\d{2})(?!\w)"
    rf"|\d{{1,2}}:\d{{2}}(?::\d{{2}})?(?:\s?{_AM}|(?![\w:]))"
    rf"|\d{{1,2}}\s?{_AM}"
    r")"
)

_UNIT = (
    r"km/h|km²|km2|km|kg|kB|kW|kWh|kHz|m/s|m²|m³|m2|mph|mg|mm|ms|ml|mi|m|cm|cl|dl|µg|nm|g|lbs?|oz"
    r"|ft|feet|foot|inch(?:es)?|yards?|yd|miles?|met(?:re|er)s?|lit(?:re|er)s?|l|L|gallons?|tons?"
    r"|tonnes?|grams?|kilos?|kilograms?|kilomet(?:re|er)s?|pounds?|ounces?|acres?|hectares?|ha"
    r"|hours?|hrs?|h|minutes?|mins?|seconds?|secs?|days?|weeks?|months?|years?|yrs?|decades?"
    r"|percent|per\scent|degrees?|dollars?|euros?|cents?|francs?|USD|EUR|GBP|CHF|bucks|quid"
    r"|[KMGT]B|[GM]Hz|Hz|W|V|kcal|calories|bps|fps|dpi|px"
)
_NUMBER = re.compile(
    r"(?<![\w.])(?:(?<![\w)\]%])[-+−±~≈])?(?:#|v(?=\d++\.\d)|(?:US|C|A)?[$£€¥₹]\s?|(?:USD|EUR|GBP|CHF)\s)?"
    r"(?:(?<=[$£€¥₹#])-)?\d++(?:[.,'’\u00a0\u202f]\d++)*+(?:/\d++(?![\w/]))?"
    r"(?:(?:st|nd|rd|th|s|G|D|K|k|M|x|p|t|bn|C|F)(?!\w)"
    r"|(?:[\s-]?(?:hundred|thousand|million|billion|trillion|dozen|k|bn|mn)(?!\w))?"
    rf"(?:\s?(?:[%‰€£$]|°\s?[CF]?)|[\s-]?(?:{_UNIT})(?!\w))?)"
    r"(?!\w)"
)
_MENTION = re.compile(
    r"(?<![\w@.%+-])(?:@\w++(?:[.-]\w++)*+(?:@[\w.-]*\w)?|/?[ur]/[A-Za-z]\w{1,30}+)"
)
_HASHTAG = re.compile(r"(?<![\w&#/])#[\d_]*+[^\W\d_]\w*+")
_PLACEHOLDER = re.compile(
    r"\{\{[^{}\n]{1,60}+\}\}|\$\{[^{}\n]{1,60}+\}|\{(?:[A-Za-z_][\w.\[\]!:-]{0,40}+|\d{0,3})\}"
    r"|(?<![\w%])%(?:\(\w{1,40}\))?(?:\.?\d{1,3})?[sdifrxX](?!\w)"
    r"|\[[A-Z][A-Z0-9_-]{1,30}+(?:\s[A-Z][A-Z0-9_-]{0,30}+)?\](?!\()"
)
_QUOTATION = re.compile(
    r"“([^“”\n]{3,1000}+)”|«([^«»\n]{3,1000}+)»|(?<!\w)\"([^\"\n]{3,1000}+)\"(?!\w)"
    r"|(?<!\w)‘([^‘\n]{3,1000}?)’(?!\w)"
)
_TICKS = re.compile(r"`++|[\n\r]")
_PATTERNS: tuple[tuple[Kind, re.Pattern[str]], ...] = (
    ("email", _EMAIL), ("path", _WINDOWS), ("date", _DATE), ("number", _NUMBER),
    ("hashtag", _HASHTAG), ("placeholder", _PLACEHOLDER),
)  # fmt: skip
_RANK = {kind: rank for rank, kind in enumerate(get_args(Kind))}


def protected(text: str, *, quotations: bool = False) -> tuple[Protected, ...]:
    """Find the protected parts of a text, sorted and without overlap.

    Where two overlap, the one that starts first stays, and of two that start together the longer.

    Args:
        text: Any string.
        quotations: Also protect quoted text of two words or more (without its marks).
    """
    found = [*_code(text), *_addresses(text)]
    for kind, pattern in _PATTERNS:
        found.extend(Protected(*match.span(), kind) for match in pattern.finditer(text))
    if quotations:
        found.extend(
            Protected(*match.span(match.lastindex or 0), "quotation")
            for match in _QUOTATION.finditer(text)
            if len(match.group().split()) > 1
        )
    found.sort(key=lambda part: (part.start, -part.end, _RANK[part.kind]))
    kept: list[Protected] = []
    last = 0
    for part in found:
        if part.start >= last:
            kept.append(part)
            last = part.end
    return tuple(kept)


def missing(
    original: str,
    rewrite: str,
    *,
    quotations: bool = False,
    skip: Sequence[tuple[int, int]] = (),
) -> tuple[Protected, ...]:
    """Tell which protected parts of a text its rewrite lacks.

    Parts count as often as they occur. A part is kept if the rewrite holds an equal part (numbers:
    whatever the spacing, the thousands separator or the plural of the unit) or its very text.

    Args:
        original: The text before the rewrite.
        rewrite: The text after it.
        quotations: As for `protected`.
        skip: Ranges of `original`; parts that touch one of them are not asked for.

    Returns:
        Parts of `original`, in order.
    """
    wanted: dict[tuple[str, str], list[Protected]] = defaultdict(list)
    for part in protected(original, quotations=quotations):
        if not any(start < part.end and part.start < end for start, end in skip):
            wanted[_key(original, part)].append(part)
    kept: dict[tuple[str, str], int] = defaultdict(int)
    for part in protected(rewrite, quotations=quotations) if wanted else ():
        kept[_key(rewrite, part)] += 1
    lost = [
        part
        for key, parts in wanted.items()
        if len(parts) > kept[key]
        for part in parts[max(kept[key], _occurrences(original, parts[0], rewrite)) :]
    ]
    return tuple(sorted(lost, key=lambda part: part.start))


def _key(text: str, part: Protected) -> tuple[str, str]:
    """What two parts share when they say the same."""
    value = text[part.start : part.end]
    if part.kind == "number":
        value = re.sub(r"[\s-](?=[^\W\d]|[%‰°€£$])|(?<=\d)[,'’\u00a0\u202f](?=\d{3})", "", value)
        value = re.sub(r"(?<=[a-z]{2})s\Z", "", value.lower())
    elif part.kind == "date":
        value = " ".join(value.lower().split()).replace(".", "")
    return part.kind, value


def _occurrences(text: str, part: Protected, rewrite: str) -> int:
    """How often the very text of a part stands in the rewrite, not as a piece of something."""
    value = text[part.start : part.end]
    before = r"(?<!\w)" if value[0].isalnum() else ""
    after = r"(?!\w)" if value[-1].isalnum() else ""
    if part.kind == "number":
        before, after = before + r"(?<!\d[.,])", after + r"(?![.,]\d)"
    return len(re.findall(before + re.escape(value) + after, rewrite))


def _code(text: str) -> Iterator[Protected]:
    """Yield code blocks and inline code."""
    if "```" in text or "~~~" in text or "    " in text or "\t" in text:
        for segment in segments(text):
            if segment.kind == "code":
                yield Protected(segment.start, segment.end, "code")
    opened: dict[int, int] = {}  # length of a run of backticks -> where it stands
    for match in _TICKS.finditer(text) if "`" in text else ():
        start, end = match.span()
        if text[start] != "`":
            opened.clear()
        elif (begin := opened.get(end - start)) is not None:
            opened.clear()
            if not text[begin:end].strip("`").isspace():
                yield Protected(begin, end, "code")
        elif start == 0 or not text[start - 1].isalnum():  # don`t: an apostrophe
            opened[end - start] = start


def _addresses(text: str) -> Iterator[Protected]:
    """Yield URLs, paths and mentions: tokens whose end or kind a pattern alone cannot tell."""
    for match in _URL.finditer(text):
        if (end := _url_end(text, *match.span())) > match.start() + 3:
            yield Protected(match.start(), end, "url")
    for match in _FILE.finditer(text):
        token = match.group().rstrip(".-+%~@")
        if _is_path(token):
            yield Protected(match.start(), match.start() + len(token), "path")
    for match in _MENTION.finditer(text):
        if match.group()[1:].lower() not in AT_WORDS:
            yield Protected(*match.span(), "mention")


def _url_end(text: str, start: int, end: int) -> int:
    """Leave out the punctuation of the sentence that an address stands in."""
    spare = text.count(")", start, end) - text.count("(", start, end)
    while end > start and (
        text[end - 1] in ".,;:!?'’*_~…]" or (text[end - 1] == ")" and spare > 0)
    ):
        spare -= text[end - 1] == ")"
        end -= 1
    return end


def _is_path(token: str) -> bool:
    if "@" in token or not any(map(str.isalpha, token)):
        return False
    if _FILE_ENDS.search(token):
        return True
    steps = [step for step in token.split("/") if step]
    if token.startswith(("~/", "./", "../")):
        return bool(steps[1:])
    return token.startswith("/") and not token.startswith("//") and len(steps) > 1


def unprotected(text: str, spans: Sequence[Span], policy: Policy) -> list[Range]:
    """The unsafe phrases without the protected parts in them, sorted: what a mask may cover."""
    guarded = [
        (part.start, part.end) for part in protected(text, quotations=policy.protect_quotations)
    ]
    found: list[Range] = []
    for span in spans:
        pieces = [(span.start, span.end)]
        for start, end in guarded:
            pieces = [
                piece
                for first, last in pieces
                for piece in ((first, min(last, start)), (max(first, end), last))
                if piece[0] < piece[1]
            ]
        found += [_tight(text, piece) for piece in pieces if text[slice(*piece)].strip()]
    return sorted(set(found))


def _tight(text: str, where: Range) -> Range:
    start, end = where
    inner = text[start:end]
    return start + len(inner) - len(inner.lstrip()), start + len(inner.rstrip())
