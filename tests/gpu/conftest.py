"""The tiny model of the contract suite, here too."""

from tests.contract.conftest import prompt, tiny

__all__ = ["prompt", "tiny"]
