"""The language gate: tell English, for which the models were validated, from what is not.

The detector is py3langid (naive Bayes over byte n-grams, numpy only, its 4.6 MB model inside the
package). It is imported and loaded at the first text that needs it, and only read afterwards, so
threads may share it.
"""

from __future__ import annotations

import re
import threading
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING

from srllm_guard.forks import PerProcess
from srllm_guard.text.normalize import fold

if TYPE_CHECKING:
    from py3langid.langid import LanguageIdentifier

__all__ = ["Language", "language"]

LEAST_WORDS = 4
LEAST_LETTERS = 20
"""Latin text with fewer words or letters is exempt: there is too little to tell a language by."""
LEAST_FOREIGN_LETTERS = 10
LEAST_IDEOGRAPHS = 4
"""Letters of other scripts, and Chinese, Japanese or Korean signs, that make a text foreign."""
CERTAIN = 0.9
LIKELY = 0.3
"""Latin text is called not English if all other languages together reach `CERTAIN` and one of them
`LIKELY`: names, lists and slang spread over many languages, a real one stands out."""

HEAD = 4_000
WINDOW = 1_000
SAMPLES = 8

# Nigerian Pidgin is where slang lands ("i don 't remember shit"); zxx is "no linguistic content".
_ENGLISH = ("en", "pcm", "zxx")

_WORD = re.compile(r"[^\W\d_]++(?:['’][^\W\d_]++)*+")
_NOT_PROSE = re.compile(
    r"```.*?(?:```|\Z)|`[^`\n]{1,200}+`|(?:https?://|www\.)\S++|[\w.+-]{1,64}+@[\w.-]++|[@#]\w++",
    re.DOTALL,
)
_IDEOGRAPH = re.compile(
    r"[\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uac00-\ud7af\U00020000-\U0003ffff]"
)


@dataclass(frozen=True, slots=True)
class Language:
    """What language a text is in, and whether the models were validated for it."""

    code: str | None
    """ISO 639 code of the likeliest language; None where the text is too short to tell."""
    confidence: float
    """Probability of `code`, 0 to 1; 0.0 where `code` is None."""
    verified: bool
    """True for English and for text that is too short to tell; False for any other language."""


def language(text: str) -> Language:
    """Detect the language of a text.

    Code, addresses and mentions are left out, and disguised letters are read folded, so that
    English in look-alike letters is still English. Read are the first 4,000 characters, in windows
    of 1,000, and of what follows up to eight windows of 1,000 at even distances, the last of them
    at the very end. The text is verified if every window is English or too short to tell; one
    window in another language, for example a long foreign tail, is enough for it not to be.
    Text in another script is never English; text in Latin letters is called foreign only when the
    detector is sure.
    """
    found = [_judge(window) for window in _windows(text)]
    foreign = [result for result in found if not result.verified]
    known = foreign or [result for result in found if result.code is not None]
    return max(known, key=lambda result: result.confidence, default=Language(None, 0.0, True))


def _windows(text: str) -> list[str]:
    """Cut out what is read, without code and addresses; a short remainder joins its neighbour."""
    head = _NOT_PROSE.sub(" ", text[:HEAD])
    starts = range(0, max(1, len(head) - WINDOW // 2), WINDOW)
    windows = [head[start : start + WINDOW] for start in starts[:-1]] + [head[starts[-1] :]]
    if (rest := len(text) - HEAD) > 0:
        count = min(SAMPLES, -(-rest // WINDOW))
        last = max(HEAD, len(text) - WINDOW)
        step = (last - HEAD) / max(1, count - 1)
        starts_after = [HEAD + round(step * index) for index in range(count - 1)] + [last]
        windows += [_NOT_PROSE.sub(" ", text[at : at + WINDOW]) for at in starts_after]
    return [fold(window).text for window in windows]


def _judge(text: str) -> Language:
    letters = sum(map(str.isalpha, text))
    strange = sum(character.isalpha() and _is_foreign(character) for character in text)
    if 2 * strange > letters:
        if strange >= LEAST_FOREIGN_LETTERS or len(_IDEOGRAPH.findall(text)) >= LEAST_IDEOGRAPHS:
            ranks = _ranks(text)
            code, confidence = next(item for item in ranks.items() if item[0] not in _ENGLISH)
            return Language(code, confidence, False)
        return Language(None, 0.0, True)
    if letters < LEAST_LETTERS or len(_WORD.findall(text)) < LEAST_WORDS:
        return Language(None, 0.0, True)
    ranks = _ranks(text)
    english = sum(ranks.get(code, 0.0) for code in _ENGLISH)
    code, confidence = next(item for item in ranks.items() if item[0] not in _ENGLISH)
    if 1.0 - english >= CERTAIN and confidence >= LIKELY:
        return Language(code, confidence, False)
    return Language("en", ranks["en"], True)


def _is_foreign(character: str) -> bool:
    """Whether a letter belongs to another script than Latin."""
    return character > "\u024f" and not "\u1e00" <= character <= "\u1eff"


def _ranks(text: str) -> dict[str, float]:
    """Probabilities by language, the likeliest first."""
    return dict(preload().rank(text.lower()))


_LOADING = PerProcess(threading.Lock)


def preload() -> LanguageIdentifier:
    """Load the detector, unless it is there; a first text need not wait for it then."""
    with _LOADING.value:
        return _identifier()


@cache
def _identifier() -> LanguageIdentifier:
    """Load the detector; about half a second, once a process."""
    from py3langid.langid import MODEL_FILE, LanguageIdentifier

    # An identifier of our own: the module's is changed by any other user's set_languages().
    return LanguageIdentifier.from_model_file(MODEL_FILE, norm_probs=True)
