"""What was released under one policy, so that nothing is moderated twice."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from typing import Any

from langchain_core.messages import BaseMessage

from srllm_guard.middleware.langchain.messages import pieces


class Ledger:
    """Digests of released texts and arguments; a message is in it if all its pieces are.

    It goes by what a message says, not by its id: an edited message has to be moderated again.
    """

    def __init__(self, policy: str, digests: Iterable[str] = ()) -> None:
        self._policy = policy
        self._digests = dict.fromkeys(digests)

    def add(self, message: BaseMessage) -> None:
        """Enter a message that was released."""
        self._digests |= dict.fromkeys(self._digest(piece) for piece in pieces(message))

    def digests(self) -> list[str]:
        """All digests, for the state of an agent; without duplicates, in the order they came."""
        return list(self._digests)

    def __contains__(self, message: BaseMessage) -> bool:
        return all(self._digest(piece) in self._digests for piece in pieces(message))

    def _digest(self, piece: Any) -> str:
        text = _canonical(piece)
        return hashlib.sha256(
            f"{self._policy}\0{text}".encode("utf-8", "surrogatepass")
        ).hexdigest()


def _canonical(piece: Any) -> str:
    """A text as it is; arguments in one form, whether they are a mapping or JSON."""
    if not isinstance(piece, str):
        return json.dumps(piece, sort_keys=True, default=repr)
    try:
        return json.dumps(json.loads(piece, object_pairs_hook=_once), sort_keys=True)
    except (ValueError, RecursionError):  # no JSON, or too deep to be compared
        return str(piece)


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """An object of JSON; what one that has a key twice says is more than a mapping can hold."""
    made = dict(pairs)
    if len(made) < len(pairs):
        raise ValueError("a key comes twice")
    return made
