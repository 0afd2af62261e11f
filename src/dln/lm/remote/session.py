"""One model on one server: sends the dialect's calls, caches token ids, checks the model's name, counts usage.

Scoring modes, probe and engine access the server through a `Session` and see values, not JSON.

**Usage.** Threads that share an engine account for their own calls, so each must find its own tokens. A reply that also
answers equal calls of other threads is billed to the one that sent it; for the others it is free.

**Partial results.** A row may need several replies (the steps of a trie, draws to count), in rounds that depend on
earlier ones. When a verb fails, it is therefore repeated row by row on the recorded replies; a row for which a reply is
missing is left out.
"""

from __future__ import annotations

import threading
from collections import OrderedDict, defaultdict, deque
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any, TypeVar, cast

from dln.errors import DlnError, ProviderError
from dln.lm.cache import keeper_of
from dln.lm.meter import Usage
from dln.lm.remote.call import Call, Sender
from dln.lm.remote.dialect import Dialect, Prompt
from dln.lm.remote.read import Ids, malformed, model_of

__all__ = ["NotRecorded", "Recording", "Session", "partial_results_kept"]


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
        wanted_per_call: how many token ids a call may ask log-probabilities of; None before more than the dialect's
            number were wanted.
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
        self.wanted_per_call: int | None = None
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


_COUNTED = {"prompt_tokens": 0, "completion_tokens": 0}
"""Stands in a reply whose tokens are in somebody's account."""


@dataclass(slots=True)
class _Account:
    usage: Usage = field(default_factory=Usage)
    silent: int = 0  # replies that did not say what they cost


class Bill:
    """The accounts of one engine's threads; safe to use from all of them."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._accounts: dict[int, _Account] = {}
        self._common = Usage()
        self._tells = False

    def add(self, reply: Any, thread: int) -> None:
        """Put what `reply` says of its cost into the account of `thread`, unless it is in one already."""
        if not isinstance(reply, dict):
            return
        fields = cast("dict[str, Any]", reply)
        if not {"choices", "meta_info"} & fields.keys():
            return  # lists of models and of token ids cost nothing
        with self._lock:
            account = self._accounts.setdefault(thread, _Account())
            used = _usage_of(fields)
            if used is None:
                account.silent += 1
                return
            self._tells = True
            account.usage += used
            fields["usage"] = _COUNTED

    def take(self) -> Usage | None:
        """What the calling thread's account and the common one hold, which are empty then.

        None if no server has ever said what it counts, or if not every reply of this thread did.
        """
        with self._lock:
            account = self._accounts.pop(threading.get_ident(), _Account())
            if account.silent or not self._tells:
                return None
            common, self._common = self._common, Usage()
            return common + account.usage

    @contextmanager
    def shared(self) -> Generator[None]:
        """What the block costs belongs to no thread's verb: whoever asks next takes it."""
        try:
            yield
        finally:
            with self._lock:
                self._common += self._accounts.pop(threading.get_ident(), _Account()).usage


def _usage_of(reply: dict[str, Any]) -> Usage | None:
    """The tokens of one reply: `usage` in the OpenAI form, or SGLang's `meta_info`."""
    said = _mapping(reply.get("usage")) or _mapping(reply.get("meta_info"))
    prompt, completion = _count(said.get("prompt_tokens")), _count(said.get("completion_tokens", 0))
    if prompt is None or completion is None:
        return None
    details = _mapping(said.get("prompt_tokens_details"))
    cached = _count(details.get("cached_tokens", said.get("cached_tokens", 0))) or 0
    return Usage(prompt_tokens=prompt, completion_tokens=completion, cached_tokens=min(cached, prompt))


def _mapping(value: object) -> dict[str, Any]:
    return cast("dict[str, Any]", value) if isinstance(value, dict) else {}


def _count(value: object) -> int | None:
    return value if isinstance(value, int) and not isinstance(value, bool) and value >= 0 else None


Key = tuple[str, bytes | None]


class NotRecorded(Exception):
    """The reply to this call had not come."""


class Recording:
    """What was read from replies, by call.

    Attributes:
        replaying: whether calls are answered from here, and no longer sent.
    """

    def __init__(self) -> None:
        self.replaying = False
        self._sent: list[tuple[Sequence[Call], Mapping[int, Any]]] = []
        self._known: dict[Key, Any] = {}
        self._draws: defaultdict[Key, deque[Any]] = defaultdict(deque)

    def listen(self, calls: Sequence[Call]) -> Callable[[int, Any], None]:
        """What takes (index, value) of the replies to `calls`."""
        values: dict[int, Any] = {}
        self._sent.append((calls, values))
        return values.__setitem__

    def replay(self) -> bool:
        """From now on answer from what came; whether anything did."""
        self.replaying = True
        for calls, values in self._sent:
            for index, value in values.items():
                key = _key(calls[index])
                if calls[index].draws:
                    self._draws[key].append(value)
                else:
                    self._known[key] = value
        return bool(self._known or self._draws)

    def answers(self, calls: Sequence[Call]) -> list[Any]:
        """The values of `calls`; of equal ones that draw, each reply is one call's.

        Raises:
            NotRecorded: one of them had not come; no draw is used up then.
        """
        keys = [_key(call) for call in calls]
        taken: defaultdict[Key, int] = defaultdict(int)
        found: list[Any] = []
        for key, call in zip(keys, calls, strict=True):
            if call.draws:
                if taken[key] >= len(self._draws[key]):
                    raise NotRecorded
                found.append(self._draws[key][taken[key]])
                taken[key] += 1
            elif key in self._known:
                found.append(self._known[key])
            else:
                raise NotRecorded
        for key, count in taken.items():
            for _ in range(count):
                self._draws[key].popleft()
        return found


recording: ContextVar[Recording | None] = ContextVar("recording", default=None)
"""Of the verb that runs in this thread, where somebody keeps what it answers."""


@contextmanager
def partial_results_kept(contexts: Sequence[str], one: Callable[[int], object]) -> Generator[None]:
    """Where the block fails, Ctrl-C included, hand over the rows whose replies had all come; then raise.

    Args:
        contexts: the batch of the verb.
        one: the verb's answer to the row at a position.
    """
    keep = keeper_of(contexts)
    if keep is None:
        yield
        return
    current = Recording()
    token = recording.set(current)
    try:
        yield
    except BaseException:
        if current.replay():
            for index in range(len(contexts)):
                try:
                    answer = one(index)
                except (NotRecorded, DlnError):
                    continue  # this row is not complete, or is what failed: the first error is the one to raise
                keep(index, answer)
        raise
    finally:
        recording.reset(token)


def _key(call: Call) -> Key:
    return call.path, call.payload()
