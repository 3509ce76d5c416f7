"""In which language a text is, while it is still being told."""

from __future__ import annotations

from srllm_guard.language import WINDOW, Language, language

ENOUGH = 300
"""Characters from which a beginning that looks foreign is taken to be it."""


class Tongue:
    """Follows the language of one text that grows, in the windows in which `language` reads it.

    One window in another language is enough for all that follows to be in another one.
    """

    def __init__(self) -> None:
        self._window = ""
        self._heard = 0
        self._sure = False
        self._foreign: Language | None = None
        self._found = Language(None, 0.0, True)

    def hear(self, piece: str) -> Language | None:
        """The language of all pieces so far, of which this is the next.

        Returns:
            None where it looks foreign, but little was heard yet.
        """
        self._window += piece
        self._heard += len(piece)
        while len(self._window) > WINDOW + WINDOW // 2:
            self._judge(self._window[:WINDOW])
            self._window = self._window[WINDOW:]
        if self._foreign is None and not self._sure:
            self._found = language(self._window)
            self._sure = self._found.verified and self._heard >= ENOUGH
        if not self.found.verified and self._heard < ENOUGH:
            return None
        return self.found

    @property
    def found(self) -> Language:
        """The language as far as it can be told."""
        return self._foreign or self._found

    def _judge(self, window: str) -> None:
        found = language(window)
        if not found.verified and self._foreign is None:
            self._foreign = found
