"""Which strings of structured data are prose, and which are values for machines."""

from __future__ import annotations

import re

from srllm_guard.text.protect import protected

_WORD = re.compile(r"[^\W\d_]{2}")
_ONE_WORD = re.compile(r"\W*+(?:[^\W\d_]++['’-]?+)++\W*+\Z")
_SIGNS = re.compile(r"[^\w'’./-]++")
"""What parts words; the signs left out hold names of things together, such as "to-do"."""
_LETTERS = re.compile(r"[^\W\d_]++(?:['’][^\W\d_]++)*+")
_CAMEL = re.compile(r"(?<=[a-z])(?=[A-Z])")
_LATIN = re.compile(r"[A-Za-z\u00c0-\u024f]")


def is_prose(text: str) -> bool:
    """Whether a string is something that people read.

    A text of two words or more is, unless all of it is addresses, paths, dates, numbers and the
    like; signs may part the words as well ("you,idiot") if only words and numbers stand between
    them, and so may capitals in a hashtag. A single word is when it is written like a sentence: it
    ends with a full stop, question or exclamation mark, or begins with a capital and goes on in
    small letters. Others are names of things ("in_progress", "PENDING", "idiot"), which a program
    may compare, so they stay. Words of a script other than Latin need no space.
    """
    last, rest = 0, []
    for part in protected(text):
        tag = text[part.start : part.end] if part.kind == "hashtag" else ""
        rest += [text[last : part.start], _CAMEL.sub(" ", tag)]
        last = part.end
    spoken = "".join([*rest, text[last:]])
    if not _WORD.search(spoken):
        return False
    if len(text.split()) > 1 or _has_words(spoken):
        return True
    word = spoken.strip()
    if word[-1] in ".!?…" or any(map(_is_foreign, word)):
        return True
    return bool(_ONE_WORD.match(word)) and word.strip("\"'“”‘’()*_").istitle()


def _has_words(text: str) -> bool:
    """Whether a text is two words or more, parted by signs, and no more than words and numbers."""
    found = [word for word in _SIGNS.split(text) if word and not word.isdecimal()]
    return len(found) > 1 and all(map(_LETTERS.fullmatch, found))


def _is_foreign(character: str) -> bool:
    return character.isalpha() and not _LATIN.match(character)
