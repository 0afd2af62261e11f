"""What every wrapper of a language model passes on unchanged."""

from __future__ import annotations

from typing import Self

from dln.lm.base import Capabilities, LanguageModel

__all__ = ["Wrapper"]


class Wrapper:
    """A language model around another one; the three verbs are the subclass's own.

    Only what the `LanguageModel` protocol names is passed on, each by a line of its own: an engine's
    other attributes are reached through `inner`, so that no call slips past the wrapper unseen.
    """

    def __init__(self, inner: LanguageModel) -> None:
        self._inner = inner

    def __deepcopy__(self, memo: dict[int, object]) -> Self:
        """The model itself: it is a resource with locks and counters, shared by whatever uses it."""
        return self

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self._inner!r})"

    @property
    def inner(self) -> LanguageModel:
        """The model that is wrapped, one layer down."""
        return self._inner

    @property
    def unwrapped(self) -> LanguageModel:
        """The engine under all wrappers."""
        return self._inner.unwrapped if isinstance(self._inner, Wrapper) else self._inner

    @property
    def name(self) -> str:
        """The wrapped model's name."""
        return self._inner.name

    @property
    def capabilities(self) -> Capabilities:
        """The wrapped model's capabilities."""
        return self._inner.capabilities

    def fingerprint(self) -> str:
        """The wrapped model's fingerprint: a wrapper changes no number."""
        return self._inner.fingerprint()

    def count_tokens(self, text: str) -> int:
        """As the wrapped model counts."""
        return self._inner.count_tokens(text)
