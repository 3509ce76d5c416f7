"""HTML: text nodes are the parts; tags, attributes, comments, scripts and styles are not touched.

The parser is tinyhtml5 (extra `structure`), which follows the tokenizer and the tree construction
of the WHATWG standard. What it takes for a comment or a script is what a browser takes for one, so
nothing that a reader sees goes unjudged. Python's own html.parser tells positions as well, but
before its releases of 2025 it reads `<!--> ... -->`, `<!-- --!>` and `</script/>` differently, and
text hidden behind these was not seen. Bindings of C parsers (lxml, selectolax) tell no positions.

Text of one block is one part, though tags stand in it: "You <b>idiot</b>!" is one sentence.
"""

from __future__ import annotations

import html
import re
from functools import lru_cache
from typing import Any

from srllm_guard.errors import MissingExtra
from srllm_guard.structure.document import Document, spoken
from srllm_guard.structure.part import Builder, Part, Spelling

SKIPPED = frozenset({"script", "style", "iframe", "noembed", "noframes"})
"""Elements whose text nobody reads."""

CODE = frozenset({"code", "kbd", "samp", "var", "math"})
"""Elements whose text stays as it is."""

RAW = frozenset({"xmp", "plaintext"})
"""Elements whose text has no escapes."""

_INLINE_NAMES = """
a abbr acronym b bdi bdo big cite code data del dfn em font i img ins kbd label mark math q rp rt
ruby s samp small span strike strong sub sup time tt u var wbr
"""
INLINE = frozenset(_INLINE_NAMES.split())
"""Elements that a sentence goes on through."""

_SPACE = re.compile(r"[ \t\n\f\r]++")
_UNSEEN = re.compile("[\r\ud800-\udfff]")


def read(text: str) -> Document:
    """Read an HTML document, or a piece of one.

    Raises:
        MissingExtra: tinyhtml5 is not installed.
    """
    parts = tuple(_parts(text))
    return Document(text, parts, spoken(parts), message=_escaped)


def _parts(text: str) -> list[Part]:
    collector = _Collector(text)
    _parser()(collector).parse(text)
    return collector.finished()


class _Collector:
    """Makes parts of the tokens of a document."""

    def __init__(self, text: str) -> None:
        self._text = text
        self._parts: list[Part] = []
        self._made = Builder()
        self._raw = False

    def characters(self, data: str, start: int, end: int, names: list[str]) -> None:
        """Take a text token, which stands within elements of these names."""
        code = not CODE.isdisjoint(names)
        if not SKIPPED.isdisjoint(names) or (code and "pre" in names):
            return  # a listing is code, which is not judged
        raw = not RAW.isdisjoint(names)
        if raw != self._raw:
            self._close()
            self._raw = raw
        seen = self._text[start:end]
        if len(seen) != len(data) or _UNSEEN.sub("\n", seen) != _UNSEEN.sub("\n", data):
            self._made.add(data, start, end)  # a character reference, or a CDATA section
        elif code:
            self._made.add(seen, start, end, kept=True)
        elif "pre" in names or "textarea" in names or raw:
            self._made.add(seen, start, end)
        else:
            last = 0
            for space in _SPACE.finditer(seen):
                self._made.add(seen[last : space.start()], start + last, start + space.start())
                self._made.add(" ", start + space.start(), start + space.end())
                last = space.end()
            self._made.add(seen[last:], start + last, end)

    def tag(self, name: str, start: int, end: int, *, opens: bool) -> None:
        """Take a start or end tag."""
        if name == "br" and opens:
            self._made.add("\n", start, end, kept=True)
        elif name in CODE:
            # Marks that only the reader sees: what is between them is protected as code.
            place = end if opens else start
            self._made.add("`", place, place, kept=True)
        elif name not in INLINE:
            self._close()

    def finished(self) -> list[Part]:
        """All parts, in order."""
        self._close()
        return self._parts

    def _close(self) -> None:
        if self._made:
            spell: Spelling = _without_tags if self._raw else _escaped
            self._parts.append(self._made.part(spellings=(spell,), markup_stays=True))
        self._made = Builder()


class _Source:
    """The text as the stream of characters that the tokenizer reads, with the place where it is."""

    def __init__(self, text: str, end_of_file: object) -> None:
        # One character for one, so that places in it are places in the text.
        self._text = _UNSEEN.sub(lambda m: "\n" if m.group() == "\r" else "\ufffd", text)
        self._end = end_of_file
        self.at = 0
        self.errors: list[str] = []
        self.encoding = (None, "certain")

    def character(self) -> Any:
        if self.at >= len(self._text):
            return self._end
        self.at += 1
        return self._text[self.at - 1]

    def chars_until(self, characters: Any, opposite: bool = False) -> str:
        match = _stretch(frozenset(characters), opposite).match(self._text, self.at)
        found = match.group() if match else ""
        self.at += len(found)
        return found

    def unget(self, character: Any) -> None:
        if character is not self._end:
            self.at -= 1

    def position(self) -> tuple[int, int]:
        return 1, self.at


@lru_cache(maxsize=64)
def _stretch(characters: frozenset[str], opposite: bool) -> re.Pattern[str]:
    signs = "".join(map(re.escape, sorted(characters)))
    return re.compile(f"[{signs}]*+" if opposite else f"[^{signs}]*+", re.DOTALL)


@lru_cache(maxsize=1)
def _parser() -> Any:  # noqa: C901 - two classes that can only be made once tinyhtml5 is there
    """The parser class of tinyhtml5, made to tell a collector where each token stands."""
    try:
        from tinyhtml5.constants import EOF, Token
        from tinyhtml5.parser import HTMLParser
        from tinyhtml5.tokenizer import HTMLTokenizer
    except ImportError as error:
        raise MissingExtra(extra="structure", needed_for='format="html"') from error

    class Tokenizer(HTMLTokenizer):  # type: ignore[misc]
        def __init__(self, text: str, parser: Any) -> None:
            super().__init__("", parser=parser)
            self.stream = _Source(text, EOF)

        def __iter__(self) -> Any:
            start = 0
            for token in super().__iter__():
                kind = token["type"]
                if kind != Token.PARSE_ERROR:
                    end = self.stream.at
                    self.parser.see(token, kind, start, end)
                    start = end
                yield token

    class Parser(HTMLParser):  # type: ignore[misc]
        def __init__(self, collector: _Collector) -> None:
            super().__init__()
            self._collector = collector

        def parse(self, text: str) -> None:
            self.container, self.scripting = None, False
            self.tokenizer = Tokenizer(text, self)
            self.reset()
            self.main_loop()

        def see(self, token: Any, kind: Any, start: int, end: int) -> None:
            if kind in (Token.CHARACTERS, Token.SPACE_CHARACTERS):
                names = [element.name for element in self.tree.open_elements]
                self._collector.characters(token["data"], start, end, names)
            elif kind in (Token.START_TAG, Token.END_TAG):
                opens = kind == Token.START_TAG
                self._collector.tag(token["name"], start, end, opens=opens)

    return Parser


def _escaped(text: str) -> str:
    return html.escape(text, quote=False)


def _without_tags(text: str) -> str:
    return text.replace("<", "")
