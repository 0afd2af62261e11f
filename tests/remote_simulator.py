"""Servers without a network: each answers in the form of one kind of server, from a table whose truth is known.

A text is cut into words with the blanks before them, and one word is one token. What stands up to the last word that
ends with a colon is the context; what stands after it has the probabilities that the table gives it there. So the
server knows no boundary, as real ones do not, and its numbers can be compared with the table's.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

import numpy as np

from dln.lm.base import Sampling
from dln.lm.local.decoding import drawing_probabilities
from dln.lm.remote.call import BadRequest, Call, MalformedReply, ModelNotFound
from dln.lm.table import END, PrefixTree, TableLM, id_of, split_tokens

T = TypeVar("T")
Words = tuple[str, ...]
Entry = dict[str, float]

TEXTS = ("", " yes", " yes sir", " no", " no way", " maybe so it is")
OPENING = "<s>"


def chat_text(text: str) -> str:
    """A user's turn, up to where the assistant begins."""
    return f"[user] {text} [assistant]:"


@dataclass
class Simulator:
    """vLLM's form, and with `refused` and `defects` much less than that.

    Args:
        lm: the truth.
        refused: body fields that are answered with 400, and paths answered with 404.
        defects: names of what goes wrong, see `reply`.
        opening: whether a token that opens every text is put before contexts.
    """

    lm: TableLM
    refused: frozenset[str] = frozenset()
    defects: frozenset[str] = frozenset()
    opening: bool = True
    tops: int = 20
    calls: list[Call] = field(default_factory=list)
    model: str = "table"
    context_length: int | None = 256

    def __post_init__(self) -> None:
        self._words = {id_of(OPENING): OPENING, id_of(END): END}
        self._trees: dict[str, PrefixTree] = {}
        self._random = 0

    # -- the sender -----------------------------------------------------------------------------------

    def send(
        self, calls: Sequence[Call], read: Callable[[Call, Any], T], *, on_reply: Callable[[int, T], None] | None = None
    ) -> list[T]:
        values: list[T] = []
        for index, call in enumerate(calls):
            values.append(self._one(call, read))
            if on_reply is not None:
                on_reply(index, values[-1])
        return values

    def _one(self, call: Call, read: Callable[[Call, Any], T]) -> T:
        self.calls.append(call)
        for attempt in range(2):
            try:
                return read(call, json.loads(json.dumps(self.answer(call))))
            except MalformedReply:
                if attempt:
                    raise
        raise AssertionError

    # -- the model ------------------------------------------------------------------------------------

    def words(self, text: str) -> Words:
        found = split_tokens(text)
        self._words.update((id_of(word), word) for word in found)
        return found

    def word(self, token: int) -> str:
        return self._words[token]

    def following(self, before: Words) -> Entry:
        """p(next word | words)."""
        at = max((i + 1 for i, word in enumerate(before) if word.endswith(":")), default=0)
        context = "".join(before[at - 1 : at] if not at else before[:at]).removeprefix(OPENING)
        if context not in self._trees:
            texts = [draw.text for draw in self.lm.support(context)]
            self._trees[context] = PrefixTree.of(
                {(*self.words(text), END): self.lm.probability(context, text) for text in texts}
            )
        node = self._trees[context].follow(before[at:])
        if node is None or not node.children:
            return {END: 1.0}
        return {word: child.mass / node.mass for word, child in node.children.items()}

    def log_prob(self, before: Words, word: str) -> float:
        p = self.following(before).get(word, 0.0)
        return math.log(p) if p else -9999.0

    def draw(self, before: Words, body: dict[str, Any]) -> tuple[str, list[str], list[float], list[Words], str]:
        """Text, words, log-probabilities, prefixes and finish reason of a draw."""
        sampling = Sampling(
            body.get("temperature", 1.0), body.get("top_p", 1.0), body["max_tokens"], tuple(body.get("stop", ()))
        )
        seed = body.get("seed")
        if seed is None or "ignores seeds" in self.defects:
            self._random += 1
            seed = self._random
        generator = np.random.Generator(np.random.Philox(key=seed % 2**64))
        allowed = {self.word(i) for i in body.get("allowed_token_ids", ())}
        allowed |= {self.word(int(i)) for i in body.get("logit_bias", {})}
        drawn: list[str] = []
        values: list[float] = []
        prefixes: list[Words] = []
        text, reason = "", "length"
        while reason == "length" and len(drawn) < sampling.max_tokens:
            here = (*before, *drawn)
            p = self.following(here)
            if allowed:
                word = min(allowed)
            else:
                q = drawing_probabilities(np.array(list(p.values())), sampling)
                chosen = min(
                    int(np.searchsorted(np.cumsum(q), generator.random(), side="right")), int(np.flatnonzero(q)[-1])
                )
                word = list(p)[chosen]
            prefixes.append(here)
            drawn.append(word)
            values.append(self.log_prob(here, word))
            text += word
            cuts = [at for at in map(text.find, sampling.stop) if at >= 0]
            if cuts:
                text = text[: min(cuts)]
            if cuts or word == END:
                reason = "stop"
        return text, drawn, values, prefixes, reason

    # -- the wire -------------------------------------------------------------------------------------

    def answer(self, call: Call) -> Any:
        body = dict(call.body or {})
        if call.path in self.refused:
            raise ModelNotFound("no such path", where="server", got=call.path)
        wrong = sorted(set(body) & self.refused)
        if wrong or (body.get("logprobs") and "logprobs" in self.refused):
            raise BadRequest("the server does not take the request", where="server", got=f"unknown field {wrong}")
        reply = self.reply(call.path, body)
        return self._spoil(reply)

    def reply(self, path: str, body: dict[str, Any]) -> Any:
        if path == "/models":
            return {"data": [{"id": self.model, "root": "tables/one", "max_model_len": self.context_length}]}
        if path == "//tokenize":
            words = self.words(chat_text(body["messages"][0]["content"]) if "messages" in body else body["prompt"])
            opening = [OPENING] if self.opening and ("messages" in body or body["add_special_tokens"]) else []
            ids = [id_of(word) for word in (*opening, *words)]
            return {"tokens": ids, "count": len(ids), "max_model_len": self.context_length}
        if path == "/chat/completions":
            return self._chat(body)
        assert path == "/completions", path
        return self._completions(body)

    def sent(self, prompt: str | list[int]) -> Words:
        if isinstance(prompt, str):
            return (*([OPENING] if self.opening else []), *self.words(prompt))
        return tuple(self.word(token) for token in prompt)

    def top(self, before: Words, body: dict[str, Any]) -> Entry:
        wanted = body.get("logprob_token_ids")
        if wanted and "ignores wanted" not in self.defects:
            return {self.word(token): self.log_prob(before, self.word(token)) for token in wanted}
        count = min(self.tops, int(body.get("top_logprobs", body.get("logprobs") or 0)))
        entries = sorted(self.following(before).items(), key=lambda item: -item[1])[:count]
        return {word: math.log(p) for word, p in entries}

    def name(self, word: str, body: dict[str, Any]) -> str:
        return f"token_id:{id_of(word)}" if body.get("return_tokens_as_token_ids") else word

    def _chat(self, body: dict[str, Any]) -> Any:
        before = self.sent(chat_text(body["messages"][0]["content"]))
        body.setdefault("max_tokens", body.get("max_completion_tokens"))
        text, drawn, values, prefixes, reason = self.draw(before, body)
        choice: dict[str, Any] = {
            "index": 0,
            "message": {"role": "assistant", "content": text},
            "finish_reason": reason,
        }
        if body.get("logprobs"):
            shown = [i for i, word in enumerate(drawn) if word != END]
            choice["logprobs"] = {
                "content": [
                    {
                        "token": drawn[i],
                        "logprob": values[i],
                        "bytes": list(drawn[i].encode()),
                        "top_logprobs": [
                            {"token": word, "logprob": value} for word, value in self.top(prefixes[i], body).items()
                        ],
                    }
                    for i in shown
                ]
            }
        if body.get("return_token_ids"):
            choice["token_ids"] = [id_of(word) for word in drawn if word != END]
        return {"model": self.model, "choices": [choice]}

    def _completions(self, body: dict[str, Any]) -> Any:
        before = self.sent(body["prompt"])
        text, drawn, values, prefixes, reason = self.draw(before, {**body, "max_tokens": max(1, body["max_tokens"])})
        if body["max_tokens"] == 0 and "one more" not in self.defects:
            text, drawn, values, prefixes = "", [], [], []
        tops: list[Entry | None] = [self.top(prefix, body) for prefix in prefixes]
        numbers: list[float | None] = list(values)
        if "sampling values" in self.defects and body.get("temperature") not in (0, 1):
            numbers = [value / body["temperature"] for value in values]
        words = list(drawn)
        if body.get("echo") and "ignores echo" not in self.defects:
            scored = [None, *(self.log_prob(before[:i], before[i]) for i in range(1, len(before)))]
            if "shifted" in self.defects:
                scored = [*scored[1:], None]
            if "made up" in self.defects:
                scored = [None, *(-1.0 for _ in scored[1:])]
            shown = before[1:] if isinstance(body["prompt"], str) and self.opening else before
            numbers = [*scored[len(before) - len(shown) :], *numbers]
            text = "".join(word for word in shown if word != OPENING) + text
            words, tops = [*shown, *words], [None] * len(shown) + tops
        choice: dict[str, Any] = {"index": 0, "text": text, "finish_reason": reason}
        if body.get("logprobs") is not None:
            names = [self.name(word, body) for word in words]
            offsets = np.cumsum([0, *(len(word) for word in words)])[:-1].tolist()
            choice["logprobs"] = {
                "tokens": names,
                "token_logprobs": numbers,
                "top_logprobs": [
                    None if top is None else {self.name(word, body): value for word, value in top.items()}
                    for top in tops
                ],
                "text_offset": offsets,
            }
        if body.get("prompt_logprobs") is not None:
            ids = [id_of(word) for word in before]
            entries: list[Any] = [None] + [
                {str(ids[i]): {"logprob": self.log_prob(before[:i], before[i]), "rank": 1}} for i in range(1, len(ids))
            ]
            if "shifted" in self.defects:
                entries = [*entries[1:], None]
            if "made up" in self.defects:
                entries = [None] + [{str(token): {"logprob": -1.0}} for token in ids[1:]]
            choice["prompt_logprobs"] = entries
        if body.get("return_token_ids"):
            choice["token_ids"] = [id_of(word) for word in drawn]
        return {"model": self.model, "choices": [choice]}

    def _spoil(self, reply: Any) -> Any:
        if "no log-probs" in self.defects:
            for choice in reply.get("choices", ()):
                choice.pop("logprobs", None)
                choice.pop("prompt_logprobs", None)
        if "other model" in self.defects and len(self.calls) > 60 and "model" in reply:
            reply["model"] = "another"
        return reply
