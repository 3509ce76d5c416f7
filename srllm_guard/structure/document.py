"""A text with a structure: its parts of prose, and the check that a change breaks nothing."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass

from srllm_guard.errors import FormatError
from srllm_guard.structure.part import Change, Part, apply

Stretch = tuple[int, int, int]
"""Range of a text that can be read by itself, and the number of its first part."""

Replacement = tuple[int, int, str]
"""Range of the text of a part, and what it is replaced by."""


@dataclass(frozen=True, slots=True)
class Document:
    """A text, read in one format."""

    text: str
    parts: tuple[Part, ...]
    """All that might be prose, in order and apart."""
    judged: tuple[int, ...]
    """Numbers of the parts that are prose."""
    frame: object = None
    """What must be the same after a change, beside the number of parts; compared by `==`."""
    read: Callable[[str], Document] | None = None
    """Reads a text of the same format again. None where no spelling can break the structure."""
    message: Callable[[str], str] = str
    """The whole document when it is withheld: a message, spelled as one of its format."""
    inner: tuple[object, ...] = ()
    """What must be the same within each part, unless it is withheld; may be empty."""
    near: tuple[Stretch, ...] = ()
    """For each part the block around it, where a change is tried so that it need not be tried on
    the whole text; may be empty."""
    read_near: Callable[[str], Document] | None = None
    """Reads such a block."""

    def changes(self, number: int, edits: Sequence[Replacement]) -> list[Change] | None:
        """What replacements in one part mean for the text, one change for each.

        Returns:
            None where the structure would break in every spelling.
        """
        part = self.parts[number]
        wanted = apply(part.text, edits)
        for spell in part.spellings:
            made = [part.change(self.text, *edit, spell) for edit in edits]
            found = [change for change in made if change is not None]
            if len(found) == len(made) and self._fits(found, number, wanted):
                return found
        return None

    def withhold(self, number: int, message: str) -> tuple[Change, str] | None:
        """The change that replaces a part by a message, or by "…" where that is all that fits.

        Returns:
            The change and how the part reads then; None where nothing fits.
        """
        part = self.parts[number]
        for text in (message, "…", ""):
            for spell in part.spellings:
                change = part.withhold(self.text, text, spell)
                if self._fits([change], number, text, withheld=True):
                    return change, text
        return None

    def fits(self, number: int, start: int, end: int, new: str) -> bool:
        """Whether a replacement in one part keeps the structure."""
        return self.changes(number, [(start, end, new)]) is not None

    def _fits(
        self, changes: Sequence[Change], number: int, wanted: str, *, withheld: bool = False
    ) -> bool:
        """Whether changes of one part hold, as far as the block around it tells."""
        if self.near and self.read_near:
            start, end, first = self.near[number]
            block, here = self.read_near(self.text[start:end]), number - first
            if here < len(block.parts) and block.parts[here].text == self.parts[number].text:
                moved = [(a - start, b - start, new) for a, b, new in changes]
                return block.holds(moved, {here: wanted}, {here} if withheld else ())
        return self.holds(changes, {number: wanted}, {number} if withheld else ())

    def holds(
        self,
        changes: Sequence[Change],
        wanted: Mapping[int, str],
        withheld: Collection[int] = (),
    ) -> bool:
        """Whether the text with these changes has the same structure, and reads as wanted.

        Args:
            changes: what is to be put in.
            wanted: how the parts that change have to read then.
            withheld: parts of which nothing has to stay.
        """
        if self.read is None:
            return True
        try:
            again = self.read(apply(self.text, changes))
        except FormatError:
            return False
        return (
            again.frame == self.frame
            and len(again.parts) == len(self.parts)
            and all(
                number in withheld or old == new
                for number, (old, new) in enumerate(zip(self.inner, again.inner, strict=True))
            )
            and all(
                _words(new.text) == _words(wanted.get(number, old.text))
                for number, (old, new) in enumerate(zip(self.parts, again.parts, strict=True))
            )
        )


def spoken(parts: Sequence[Part]) -> tuple[int, ...]:
    """Numbers of the parts that have more than what must stay, such as code."""
    return tuple(
        number
        for number, part in enumerate(parts)
        if any(run.text.strip() and not run.kept for run in part.runs)
    )


def _words(text: str) -> list[str]:
    return text.split()
