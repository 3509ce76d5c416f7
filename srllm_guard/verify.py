"""Is this rewrite fit to be released?

A rewrite must be safe where it stands, carry the facts of its source, and say nothing that the
source does not say. These checks read text alone; whether it is safe now is the detector's word.
"""

from __future__ import annotations

import re
import unicodedata
from collections import Counter
from collections.abc import Iterator, Sequence
from difflib import SequenceMatcher

from srllm_guard.policy import Policy
from srllm_guard.prompt import Range
from srllm_guard.results import Span
from srllm_guard.text.protect import missing, unprotected
from srllm_guard.text.segments import segments

MOST_NEW = 4
"""Words with a meaning of their own that a rewrite may add, beyond one for each unsafe word. None
of 890 rewrites by people (APPDIA, ParaDetox, our own records) needs more than 3."""

SENTENCE = 6
"""Words from which a source is no fragment; a rewrite of it has half as many at least. Of 5,224
variations of such sentences by people 29 are shorter."""

ALIKE = 0.55
"""Two words are taken for forms of one from this share of letters in common."""

_META = re.compile(
    r"^\W*(?:here(?:'s| is| are)\b.{0,40}\b(?:rewrit|rephras|revis|version|text|variation)"
    r"|(?:sure|certainly|of course|okay)[,!.:]\s"
    r"|(?:i'm sorry|sorry|i apologi[sz]e)\b.{0,20}\b(?:can(?:'t|not)|unable)\b"
    r"|as an? (?:ai|(?:large )?language model)\b"
    r"|(?:safe|safer|rewritten|rephrased|revised|neutral) (?:text|version|variation|rewrite)\b"
    r"|(?:it is|it's) important to (?:note|remember|recogni[sz]e)\b)"
    r"|\bi(?:'ve| have)? (?:rewrote|rewritten|rephrased|revised|reworded)\b"
    r"|\bth(?:e|is) (?:text|sentence|statement|message) (?:has been|was) (?:re|chang|modif|remov)",
    re.IGNORECASE,
)
_WORD = re.compile(r"\w+(?:['’]\w+)*")
_NEGATION = re.compile(
    r"\b(?:not|no|never|none|nobody|nothing|neither|nor|cannot|without|\w+n['’]t|[dw]ont|cant|aint|isnt)\b",
    re.IGNORECASE,
)
_REASON = re.compile(
    r"\b(?:because|due to|owing to|on account of|considering (?:that|how)|seeing (?:as|that)"
    r"|given (?:that|how)|since (?!then\b|\d|last\b|yesterday\b|childhood\b))",
    re.IGNORECASE,
)
_ANY_REASON = re.compile(
    rf"{_REASON.pattern}|\b(?:'?cause|cuz|coz|bc|since|as (?:i|you|s?he|it|we|they)|why)\b"
    r"|(?:^|[,;.] )so\b",
    re.IGNORECASE,
)
_QUANTITY = re.compile(
    r"\b(?:three|four|five|six|seven|eight|nine|ten|eleven|twelve|twenty|forty"
    r"|(?:thir|four|fif|six|seven|eigh|nine)(?:teen|ty)|dozens?|hundreds?|thousands?|millions?|billions?|percent|twice"
    r"|(?<!\d[ -])(?:days?|weeks?|months?|years?|decades?))\b",
    re.IGNORECASE,
)
_NAME = re.compile(r"\b[A-Z][a-z]+(?:[-'’][A-Z]?[a-z]+)*\b")
_BEGINS = re.compile(r"(?:^|[.!?:;…\"“”‘’'(*>—–-]\s+|[\"“”‘’'(*>]|\n\s*)\Z")
"""What comes before a word that is capitalised because a sentence begins."""
_SAYS_NOTHING = """
a an and are as at be but by for from he her him his i if in is it its just like me my of on or our
she so that the their them they this to up us was we were with you your
"""
_FUNCTION = frozenset(_SAYS_NOTHING.split())
_SAYS_HOW_MUCH = "too so very just all always really only quite never such more most"
_DEGREES = frozenset(_SAYS_HOW_MUCH.split())
_FIRST_PERSON = frozenset({"i", "we", "me", "us", "i'd", "i'll", "we'd", "we'll"})
_GROUPS = (
    r"(?:wom[ae]n|m[ae]n|girls?|boys?|females?|males?|ladies|guys|blacks?|whites?|asians?|latinos?"
    r"|hispanics?|jews?|muslims?|christians?|hindus?|atheists?|immigrants?|migrants?|foreigners?"
    r"|refugees?|gays?|lesbians?|boomers?|millennials?|teenagers?|(?:old|young|older|younger|poor"
    r"|rich|disabled|white|black) (?:people|folks?|men|women)|seniors|liberals?|conservatives?)"
)
_GROUP = re.compile(
    rf"{_GROUPS}|people|folks?|kids?|child(?:ren)?|mothers?|moms?|mums?|fathers?|dads?|wi(?:fe|ves)"
    r"|husbands?|parents?|students?|teachers?|workers?|staff|nurses?|drivers?|tenants?|neighbou?rs?"
    r"|residents?|voters?|gypsies|nuns?|imams?|priests?|elderly|seniors?|youth|teens?|adults?"
    r"|queers?|lesbians?|trans|nonbinary|bi(?:sexuals?)?|straight|deaf|blind|autistics?|dyslexics?"
    r"|vegans?|farmers?|cleaners?|gamers?|homeless|renters?|widow(?:er)?s?|divorcees?|pensioners?",
    re.IGNORECASE,
)
_COMPARISON = re.compile(
    rf"\b{_GROUPS}\b.{{0,40}}\b(?:better|worse|smarter|more|less|\w+er)\b.{{0,40}}\bthan\b"
    rf".{{0,20}}\b{_GROUPS}\b",
    re.IGNORECASE,
)


def faults(
    source: str, rewrite: str, spans: Sequence[Span], policy: Policy, context: str = ""
) -> tuple[str, ...]:
    """Why `rewrite` must not replace `source`; empty when nothing speaks against it.

    Args:
        source: the flagged segment.
        rewrite: what would stand in its place.
        spans: the unsafe phrases, at offsets of `source`.
        policy: bounds of length, and whether quotations are protected.
        context: the text around the segment, whose names are known.

    Returns:
        Short reasons: "empty", "unchanged", "meta_talk", "length", "kept_phrase", "kept_claim",
        "lost_<kind>", "lost_name", "invented_number", "invented_name", "invented_reason",
        "invented_content", "swapped", "negation_lost", "negation_added",
        "compares_groups", "repeats_context", "garbled", "fragment".
    """
    if not rewrite.strip():
        return ("empty",)
    said, words = _words(source), _words(rewrite)
    if rewrite == source or (said and said == words and _signs(source) == _signs(rewrite)):
        return ("unchanged",)
    marks = [(span.start, span.end) for span in spans]
    phrases = [
        (source[start:end], span.category)
        for span in spans
        for start, end in unprotected(source, [span], policy)
    ]
    new = new_words(source, rewrite, context)
    checks = {
        "garbled": rewrite.count("\ufffd") > source.count("\ufffd"),  # half a character
        "meta_talk": _META.search(rewrite) and not _META.search(source),
        "length": not _fitting(source, rewrite, policy),
        # "Early adopters." is what is left of many a sentence, and seldom one; "You." of none.
        "fragment": _long(said) >= SENTENCE > 2 * len(words)
        or (words and _FUNCTION.issuperset(words)),
        "kept_phrase": any(_kept(*phrase, rewrite) for phrase in phrases),
        "kept_claim": _keeps_claim([text for text, kind in phrases if kind == "bias"], rewrite),
        # A small model explains what it cannot know: no reason that was not given before.
        "invented_reason": _REASON.search(rewrite) and not _ANY_REASON.search(source),
        "invented_content": len(new) > MOST_NEW + _flagged(source, marks),
        "swapped": _swaps(source, rewrite, marks),
        "compares_groups": _COMPARISON.search(rewrite),
        "repeats_context": _repeats(source, rewrite, context),
    }
    lost = missing(source, rewrite, quotations=policy.protect_quotations)
    return (
        *(name for name, wrong in checks.items() if wrong),
        *sorted({f"lost_{part.kind}" for part in lost}),
        *_names(source, rewrite, marks, context),
        *_negation(source, rewrite, marks),
    )


def omission_faults(source: str, spans: Sequence[Span], policy: Policy) -> tuple[str, ...]:
    """Why `source` must not be left out as a whole; empty when nothing speaks against it.

    Returns:
        "lost_<kind>" and "lost_name" as `faults` has them, and "lost_content" where less than half
        of the words that say something are unsafe.
    """
    marks = [(span.start, span.end) for span in spans]
    telling = [m for m in _WORD.finditer(source) if m.group().casefold() not in _FUNCTION]
    inside = sum(_overlaps(m.span(), marks) for m in telling)
    lost = missing(source, "", quotations=policy.protect_quotations)
    return (
        *sorted({f"lost_{part.kind}" for part in lost}),
        *(reason for reason in _names(source, "", marks, "") if reason == "lost_name"),
        *(("lost_content",) if 2 * inside < len(telling) else ()),
    )


def closeness(source: str, rewrite: str) -> float:
    """Share of words in common, in order, 0..1 (Ratcliff and Obershelp, 1988)."""
    left, right = _words(source), _words(rewrite)
    return SequenceMatcher(None, left, right, autojunk=False).ratio()


def _fitting(source: str, rewrite: str, policy: Policy) -> bool:
    """Whether the length is within bounds; a short text may grow by some words all the same."""
    ratio = len(rewrite) / max(1, len(source))
    return ratio >= policy.min_length_ratio and (
        ratio <= policy.max_length_ratio or len(rewrite) <= len(source) + 40
    )


def _long(words: Sequence[str]) -> int:
    """How many words there are, without the letters of s p a c e d ones."""
    return sum(len(word) > 1 for word in words)


def _repeats(source: str, rewrite: str, context: str) -> bool:
    """Whether a neighbour was said again in place of the source."""
    around = context.replace(source, "\n")
    near = (around[s.start : s.end] for s in segments(around) if s.kind == "prose")
    return any(
        len(_words(other)) >= 3
        and closeness(other, rewrite) >= max(0.8, closeness(source, rewrite))
        for other in near
    )


def _words(text: str) -> list[str]:
    return [word.casefold() for word in _WORD.findall(text)]


def _signs(text: str) -> list[str]:
    """Emoji and the like, which can be all that is unsafe."""
    return [sign for sign in text if unicodedata.category(sign) == "So"]


def _kept(phrase: str, category: str, rewrite: str) -> bool:
    """Whether an unsafe phrase came through.

    A group alone ("women", "Polish") may be the topic itself, and words like "you" say nothing.
    """
    wanted, words = _words(phrase), _words(rewrite)
    width = len(wanted)
    group = width == 1 and (_GROUP.fullmatch(wanted[0]) or phrase[:1].isupper())
    if _FUNCTION.issuperset(wanted) or (group and category == "bias"):
        return False
    return any(words[n : n + width] == wanted for n in range(len(words) - width + 1))


def _keeps_claim(phrases: Sequence[str], rewrite: str) -> bool:
    """Whether a prejudice is only said in other order: all of its words are still there.

    Compared by the first letters, so that "too emotional" is found again in "emotionally ready".
    """
    claim = {word[:6] for phrase in phrases for word in _stems(phrase) - _FUNCTION - _DEGREES}
    return len(claim) > 1 and claim <= {word[:6] for word in _stems(rewrite)}


def _names(source: str, rewrite: str, marks: Sequence[Range], context: str) -> list[str]:
    """Names outside the unsafe phrases must be kept; no name or number may come from nowhere."""
    found = []
    outside = {_stem(m.group()) for m in _named(source) if not _overlaps(m.span(), marks)}
    if outside - _stems(rewrite):
        found.append("lost_name")
    known = _stems(source) | _stems(context)
    if {_stem(m.group()) for m in _named(rewrite)} - known:
        found.append("invented_name")
    digits = Counter(re.findall(r"\d+", source)) | Counter(re.findall(r"\d+", context))
    quantities = {_stem(word) for word in _QUANTITY.findall(rewrite)}
    if Counter(re.findall(r"\d+", rewrite)) - digits or quantities - known:
        found.append("invented_number")
    return found


def says_nothing(text: str) -> bool:
    """Whether a text has no word with a meaning of its own: "", " and the "."""
    return _FUNCTION.issuperset(_words(text))


def new_words(source: str, rewrite: str, context: str = "") -> set[str]:
    """Words of the rewrite that say something and that nobody said before."""
    return _stems(rewrite) - _stems(source) - _stems(context) - _FUNCTION


def _flagged(source: str, marks: Sequence[Range]) -> int:
    """How many words the unsafe phrases have; all, where none is known."""
    return sum(len(_words(source[start:end])) for start, end in marks or [(0, len(source))])


def _named(text: str) -> Iterator[re.Match[str]]:
    """Capitalised words where no sentence begins."""
    for match in _NAME.finditer(text):
        if not _BEGINS.search(text[max(0, match.start() - 8) : match.start()]):
            yield match


def _stems(text: str) -> set[str]:
    return {_stem(word) for word in _WORD.findall(text)}


def _stem(word: str) -> str:
    """A word without its plural or possessive."""
    return re.sub(r"['’]?s\Z", "", word.casefold())


def _negation(source: str, rewrite: str, marks: Sequence[Range]) -> list[str]:
    """Whether a "not" outside the unsafe phrases went missing, or one came between kept words."""
    before = sum(not _overlaps(m.span(), marks) for m in _NEGATION.finditer(source))
    after = len(_NEGATION.findall(rewrite))
    if after < before or _flips_the_writer(source, rewrite, marks):
        return ["negation_lost"]
    left, right = list(_WORD.finditer(source)), _words(rewrite)
    words = [m.group().casefold() for m in left]
    matcher = SequenceMatcher(None, words, right, autojunk=False)
    for tag, i, j, k, m in matcher.get_opcodes():
        if tag in ("equal", "delete") or _negations(right[k:m]) <= _negations(words[i:j]):
            continue
        beside = left[max(0, i - 1) : j + 1]
        if not any(_overlaps((w.start() - 1, w.end() + 1), marks) for w in beside):
            return ["negation_added"]
    return []


def _swaps(source: str, rewrite: str, marks: Sequence[Range]) -> bool:
    """Whether a word that says something, away from what is unsafe, became quite another one.

    "They close at 9" must not become "They open at 9".
    """
    left, right = list(_WORD.finditer(source)), [_stem(word) for word in _words(rewrite)]
    words = [_stem(m.group()) for m in left]
    for tag, i, j, k, m in SequenceMatcher(None, words, right, autojunk=False).get_opcodes():
        beside = left[max(0, i - 1) : j + 1]
        if tag != "replace" or any(_overlaps((w.start(), w.end()), marks) for w in beside):
            continue
        gone, come = (
            {word for word in part if len(word) > 2} - _FUNCTION
            for part in (words[i:j], right[k:m])
        )
        if (
            gone
            and come
            and not any(SequenceMatcher(None, a, b).ratio() > ALIKE for a in gone for b in come)
        ):
            return True
    return False


def _flips_the_writer(source: str, rewrite: str, marks: Sequence[Range]) -> bool:
    """Whether a "not" that went with an unsafe phrase turns the writer's wish into its opposite.

    "Not a person I want here" must not become "I want here"; a prejudice may be turned round.
    """
    kept = _words(rewrite)
    for start, end in marks:
        behind = _WORD.findall(re.split(r"[.,;:!?]", source[end:], maxsplit=1)[0])
        tail = [word.casefold() for word in behind[:4]]
        if (
            len(tail) < 3
            or not _FIRST_PERSON & set(tail)
            or not _NEGATION.search(source[start:end])
        ):
            continue
        for n in range(len(kept) - len(tail) + 1):
            near = kept[max(0, n - 5) : n]
            if kept[n : n + len(tail)] == tail and not _negations(near):
                return True
    return False


def _negations(words: Sequence[str]) -> int:
    return len(_NEGATION.findall(" ".join(words)))


def _overlaps(where: Range, marks: Sequence[Range]) -> bool:
    return any(start < where[1] and where[0] < end for start, end in marks)
