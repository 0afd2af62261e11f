"""One model on one server: sends what a dialect asks, keeps token ids at hand, and watches that the model stays.

Everything above (rungs, probe, engine) speaks to the server through a `Session` and sees values, not JSON.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

from dln.errors import ProviderError
from dln.lm.remote.billing import Bill
from dln.lm.remote.call import Call, Sender
from dln.lm.remote.dialect import Dialect
from dln.lm.remote.dialect_values import Ids, Prompt
from dln.lm.remote.read import malformed, model_of
from dln.lm.remote.recording import recording

__all__ = ["Session"]

T = TypeVar("T")

REMEMBERED_TOKENS = 300_000
"""Ids kept at hand: about ten megabytes."""


class Session:
    """A model's server, seen through its dialect.

    Args:
        dialect: what is asked, and how replies are read.
        sender: what brings calls to the server.
        chat: whether a context is a user's turn.

    Attributes:
        takes_ids: whether prompts go as token ids; set by the probe once the server has shown that it can.
        context_length: in tokens, as soon as the server has told it.
        tokens_per_byte: of text, as the probe measured it; a quarter without a tokenizer.
        tells_densities: whether draws come with the log-probabilities that they were drawn with.
        calls: that were handed to the sender.
        bill: what the server says that it has counted.
    """

    def __init__(self, dialect: Dialect, sender: Sender, *, chat: bool) -> None:
        self.dialect = dialect
        self.chat = chat
        self.takes_ids = False
        self.context_length: int | None = None
        self.tokens_per_byte = 0.25
        self.tells_densities = False
        self.calls = 0
        self.bill = Bill()
        self._sender = sender
        self._lock = threading.Lock()
        self._served: str | None = None
        self._known: OrderedDict[tuple[str, bool], Ids] = OrderedDict()
        self._known_tokens = 0

    @property
    def served_model(self) -> str | None:
        """The name by which the model answers; None while no reply has named it."""
        return self._served

    def send(self, calls: Sequence[Call], read: Callable[[Call, Any], T]) -> list[T]:
        """Answers in the order of `calls`.

        Raises:
            ProviderError: as the sender does; also if another model answers than before.
        """
        asker = threading.get_ident()

        def checked(call: Call, reply: Any) -> T:
            self._check_model(reply)
            value = read(call, reply)
            self.bill.add(reply, asker)  # not before: what cannot be read is asked for again
            return value

        if not calls:
            return []
        record = recording.get()
        if record is not None and record.replaying:
            return record.answers(calls)
        with self._lock:
            self.calls += len(calls)
        if record is None:
            return self._sender.send(calls, checked)
        return self._sender.send(calls, checked, on_reply=record.listen(calls))

    def prompts(self, contexts: Sequence[str]) -> list[Prompt]:
        """Each context as what is sent: ids where the server takes them, else text."""
        if not self.takes_ids:
            return [Prompt(context, None, self.chat) for context in contexts]
        ids = self.encode(contexts, alone=False)
        return [Prompt(context, row, self.chat) for context, row in zip(contexts, ids, strict=True)]

    def encode(self, texts: Sequence[str], *, alone: bool) -> list[Ids]:
        """Ids of contexts, or of targets `alone`: without special tokens, and never of a chat's turn."""
        wanted = {text: (text, alone) for text in texts if text or not alone}
        found = {text: ids for text, key in wanted.items() if (ids := self._recall(key)) is not None}
        missing = [text for text in wanted if text not in found]
        calls = [self.dialect.encode(text, chat=self.chat and not alone, alone=alone) for text in missing]

        def read(call: Call, reply: Any) -> Ids:
            ids, length = self.dialect.read_ids(call, reply)
            if not ids:
                raise malformed("no tokens for a text", where="tokens", got=reply)
            if length is not None:
                self.context_length = length
            return ids

        for text, ids in zip(missing, self.send(calls, read), strict=True):
            found[text] = ids
            self._remember((text, alone), ids)
        return [found.get(text, ()) for text in texts]

    def _check_model(self, reply: Any) -> None:
        name = model_of(reply)
        if name is None:
            return
        with self._lock:
            if self._served is None:
                self._served = name
        if name != self._served:
            raise ProviderError(
                "another model answers than before, so that its numbers cannot be compared with the earlier ones",
                where=f"{self.dialect.name}/{self.dialect.model}",
                got=f"model {name!r}",
                expected=f"model {self._served!r}, as in the first reply",
                fix="name one fixed version of the model, and make sure that all replicas serve it",
            )

    def _recall(self, key: tuple[str, bool]) -> Ids | None:
        with self._lock:
            ids = self._known.get(key)
            if ids is not None:
                self._known.move_to_end(key)
            return ids

    def _remember(self, key: tuple[str, bool], ids: Ids) -> None:
        with self._lock:
            if key not in self._known:
                self._known_tokens += len(ids)
            self._known[key] = ids
            while self._known_tokens > REMEMBERED_TOKENS:
                self._known_tokens -= len(self._known.popitem(last=False)[1])
