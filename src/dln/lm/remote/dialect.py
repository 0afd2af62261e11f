"""The OpenAI form with vLLM's additions: requests as JSON, and readers of the replies.

A dialect is pure: every request is a `Call`, every reader is a function of (call, reply) alone, so that a sender can
merge equal calls and retry where a reply is malformed. Other servers differ in a few methods each (see `dialects`).
The class says what may be asked of a kind of server; what a particular server supports is found by the probe.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal, cast

from dln.lm.base import Sampling
from dln.lm.remote.call import Call
from dln.lm.remote.read import (
    Echo,
    Ids,
    ScoredToken,
    TokenRow,
    check_next,
    choices_of,
    finish_of,
    ids_of,
    keyed,
    lay_along,
    malformed,
    mapping,
    same_ids,
    sent_ids,
    sequence,
    string,
    token_row,
    without_thoughts,
)

__all__ = ["Demands", "Dialect", "Drawn", "Forcing", "ModelCard", "Prompt", "TokensField"]


Forcing = Literal["allowed_token_ids", "logit_bias"]

TokensField = Literal["max_tokens", "max_completion_tokens"]


@dataclass(frozen=True, slots=True)
class Prompt:
    """What is to be continued: ids if known, else a text, which with `chat` is the user's turn."""

    text: str
    ids: Ids | None = None
    chat: bool = False

    @property
    def weight(self) -> int:
        """Tokens, or an estimate of them."""
        return len(self.text.encode()) // 4 + 1 if self.ids is None else len(self.ids)


@dataclass(frozen=True, slots=True)
class Drawn:
    """One draw as the server tells it; `ids` None where it does not tell them.

    Of a draw with thoughts (`thought`), `text` is the answer after them, and the tokens of neither are kept.
    """

    text: str
    finish: str
    row: TokenRow
    ids: Ids | None = None
    thought: bool = False


@dataclass(frozen=True, slots=True)
class ModelCard:
    """What the server's list of models says; None where it says nothing."""

    name: str
    root: str | None = None
    context_length: int | None = None


@dataclass(frozen=True, slots=True)
class Demands:
    """What one model demands of a draw, where its kind of server does not say it; found by the probe.

    Attributes:
        tokens_field: the name of the length limit in a chat; None for the dialect's own.
        fixed_temperature: temperature and top_p cannot be set and are not sent.
        min_tokens: the smallest length limit that is accepted.
        left_out: other fields that are refused ("stop", "seed") and not sent.
        thinking_tokens: what is added to the length limit for the thoughts of a reasoning model; 0 for other models.
    """

    tokens_field: TokensField | None = None
    fixed_temperature: bool = False
    min_tokens: int = 1
    left_out: frozenset[str] = frozenset()
    thinking_tokens: int = 0


@dataclass(frozen=True)
class Dialect:
    """The OpenAI form, with vLLM's additions where `extras` is set.

    Args:
        model: the name to ask for.
        extras: whether fields beyond the OpenAI form are sent; the probe clears it where they are refused.
        suffix: `:chat` or `:completion` where the user wrote it behind the name. A server may list a model under
            the name with the suffix, as `dln serve smollm2:chat` does; the probe then asks for that one.
        demands: of the model.
    """

    model: str
    extras: bool = True
    suffix: str = ""
    demands: Demands = field(default_factory=Demands)

    name: ClassVar[str] = "openai-compatible"
    default_url: ClassVar[str | None] = None
    example_url: ClassVar[str] = "http://localhost:8000/v1"
    hosted: ClassVar[bool] = False
    key_variables: ClassVar[tuple[str, ...]] = ("OPENAI_COMPATIBLE_API_KEY",)
    url_variables: ClassVar[tuple[str, ...]] = ("OPENAI_COMPATIBLE_BASE_URL", "OPENAI_BASE_URL")
    chat_by_default: ClassVar[bool] = False
    has_tokenizer: ClassVar[bool] = True
    scores_ids: ClassVar[bool] = True
    echoes: ClassVar[bool] = True
    picks_tokens: ClassVar[bool] = True
    forcings: ClassVar[tuple[Forcing, ...]] = ("allowed_token_ids", "logit_bias")
    top_choices: ClassVar[tuple[int, ...]] = (20, 5)
    echo_tokens: ClassVar[tuple[int, ...]] = (0, 1)
    most_stops: ClassVar[int] = 4
    most_wanted: ClassVar[int] = 128  # token ids per call that vLLM takes
    chat_tokens_field: ClassVar[TokensField] = "max_tokens"

    # -- the model ----------------------------------------------------------------------------------

    def list_models(self) -> Call:
        """Which models there are."""
        return Call("/models")

    def read_models(self, call: Call, reply: Any) -> ModelCard:
        """The card of the model that is asked for; an empty one if the server does not list it.

        A model that is listed under the name with its suffix is preferred to one without.
        """
        cards = [mapping(entry, "data") for entry in sequence(mapping(reply, "reply").get("data"), "data")]
        listed = {card.get("id"): card for card in reversed(cards)}
        for name in (self.model + self.suffix, self.model):
            if name in listed:
                card = listed[name]
                root, length = card.get("root"), card.get("max_model_len", card.get("context_length"))
                return ModelCard(
                    name,
                    root if isinstance(root, str) else None,
                    length if isinstance(length, int) and length > 0 else None,
                )
        return ModelCard(self.model)

    def encode(self, text: str, *, chat: bool, alone: bool) -> Call:
        """Text to ids: a context (`chat`: as a user's turn, up to where the assistant begins), or a target `alone`.

        vLLM and llama-server name the same things differently; each ignores the other's names.
        """
        body: dict[str, Any] = {"model": self.model}
        if chat:
            body |= {"messages": _user(text), "add_generation_prompt": True, "add_special_tokens": False}
        else:
            body |= {"prompt": text, "add_special_tokens": not alone, "content": text, "add_special": not alone}
        return Call("//tokenize", body, text, len(text) // 4)

    def read_ids(self, call: Call, reply: Any) -> tuple[Ids, int | None]:
        """The ids, and the model's context length if it is told along with them."""
        fields = mapping(reply, "reply")
        length = fields.get("max_model_len")
        return ids_of(fields.get("tokens"), "tokens"), length if isinstance(length, int) and length > 0 else None

    # -- drawing ------------------------------------------------------------------------------------

    def draw(self, prompt: Prompt, sampling: Sampling, seed: int | None, top: int | None) -> Call:
        """One draw; `top` likeliest tokens at each place, None for no log-probabilities at all."""
        body: dict[str, Any] = {
            "max_tokens": sampling.max_tokens + self.demands.thinking_tokens,
            "temperature": sampling.temperature,
            "top_p": sampling.top_p,
        }
        if sampling.stop and not self.demands.thinking_tokens:  # a stop string would end the thoughts
            body["stop"] = list(sampling.stop[: self.most_stops])
        if seed is not None:
            body["seed"] = self.wire_seed(seed)
        seeded = seed is not None and "seed" not in self.demands.left_out
        return self._complete(prompt, body, top, draws=sampling.temperature > 0 and not seeded)

    def wire_seed(self, seed: int) -> int:
        """The seed as the server takes it: 64 bits, signed."""
        low = seed % 2**64
        return low - 2**64 if low >= 2**63 else low

    def read_draw(self, call: Call, reply: Any) -> Drawn:
        """The draw.

        Raises:
            MalformedReply: no text, or ids and log-probabilities that do not match.
        """
        choice = choices_of(reply)[0]
        row = token_row(choice.get("logprobs"))
        drawn = None if choice.get("token_ids") is None else ids_of(choice["token_ids"], "token_ids")
        if drawn is None and row.tokens and all(token.id is not None for token in row.tokens):
            drawn = tuple(token.id or 0 for token in row.tokens)
        if drawn is not None and row.tokens and len(drawn) != len(row.tokens):
            raise malformed("ids and log-probabilities differ in number", where="token_ids", got=len(drawn))
        text, thought = without_thoughts(self._text_of(call, choice))
        if thought or _thoughts_apart(choice):
            return Drawn(text, finish_of(choice), TokenRow(), thought=True)
        return Drawn(text, finish_of(choice), row, drawn)

    # -- scoring ------------------------------------------------------------------------------------

    def score(self, prompt: Prompt, start: int) -> Call:
        """Log-probabilities of the prompt's ids, from `start` on."""
        return self._complete(prompt, {"max_tokens": 1, "temperature": 0.0, "prompt_logprobs": 0}, None)

    def read_score(self, call: Call, reply: Any) -> tuple[ScoredToken, ...]:
        """The last tokens of the prompt with their log-probabilities; at least those from `start` on.

        Raises:
            MalformedReply: the entries are not those of the ids that were sent (missing, too few, shifted).
        """
        sent = sent_ids(call)
        entries = sequence(choices_of(reply)[0].get("prompt_logprobs"), "prompt_logprobs")
        if len(entries) != len(sent):
            raise malformed("not one entry per token", where="prompt_logprobs", got=len(entries), expected=len(sent))
        if entries[0] is not None:
            raise malformed("the first token has no log-probability", where="prompt_logprobs[0]", got=entries[0])
        return tuple(keyed(entry, token) for entry, token in zip(entries, sent, strict=True))

    def echo(self, prompt: Prompt, target: str, max_tokens: int) -> Call:
        """The prompt itself with its log-probabilities; `target` is its end, which is what is wanted."""
        body: dict[str, Any] = {"max_tokens": max_tokens, "temperature": 0.0, "echo": True}
        if prompt.ids is not None and self.extras:
            body["return_tokens_as_token_ids"] = True
        return self._complete(prompt, body, 1)

    def read_echo(self, call: Call, reply: Any) -> Echo:
        """The prompt's tokens.

        Raises:
            MalformedReply: what came back is not the prompt (echo ignored), or its values are shifted.
        """
        choice = choices_of(reply)[0]
        row = token_row(choice.get("logprobs"))
        body = cast("dict[str, Any]", call.body)
        sent, drawn = body["prompt"], max(1, int(body["max_tokens"]))
        if not row.tokens:
            raise malformed("no log-probabilities of the prompt", where="logprobs", got=choice.get("logprobs"))
        if isinstance(sent, str):
            found = lay_along(row, sent, drawn)
            first, last = found.tokens[0].log_prob, found.tokens[-1].log_prob
            if not math.isnan(first) and math.isnan(last) and len(found.tokens) > 1:
                raise malformed("the first token has a log-probability and the last has none", where="logprobs")
            return found
        return Echo(same_ids(row.tokens, sent_ids(call), drawn), None)

    def next_tokens(self, prompt: Prompt, top: int, wanted: Ids, length: int = 1) -> Call:
        """The likeliest next tokens, or `wanted` ones; further places follow the greedy text up to `length`."""
        body: dict[str, Any] = {"max_tokens": length, "temperature": 0.0}
        if wanted:
            body |= {"logprob_token_ids": list(wanted), "return_tokens_as_token_ids": True}
        return self._complete(prompt, body, top)

    def read_next(self, call: Call, reply: Any) -> TokenRow:
        """The greedy tokens, and at each place the likeliest, or those that were wanted; nothing for no answer.

        Raises:
            MalformedReply: a wanted token is missing, or nothing came back.
        """
        choice = choices_of(reply)[0]
        row = token_row(choice.get("logprobs"))
        if not row.tokens and choice.get("logprobs") and not self._text_of(call, choice):
            return row  # a chat's answer that ended before it began: its terminator is not shown
        return check_next(row, tuple(cast("dict[str, Any]", call.body).get("logprob_token_ids") or ()))

    def force(self, prompt: Prompt, token: int, how: Forcing) -> Call:
        """One step of decoding at which only `token` is allowed."""
        body: dict[str, Any] = {"max_tokens": 1, "temperature": 0.0}
        if self.extras:
            body["return_tokens_as_token_ids"] = True
        body |= {"allowed_token_ids": [token]} if how == "allowed_token_ids" else {"logit_bias": {str(token): 100}}
        return self._complete(prompt, body, 1)

    def read_force(self, call: Call, reply: Any) -> ScoredToken:
        """The token with its log-probability.

        Raises:
            MalformedReply: another token was drawn.
        """
        body = cast("dict[str, Any]", call.body)
        token = (body.get("allowed_token_ids") or [int(key) for key in body.get("logit_bias", {})])[0]
        row = token_row(choices_of(reply)[0].get("logprobs"))
        if len(row.tokens) != 1 or row.tokens[0].id != token:
            raise malformed("another token than the forced one", where="logprobs", got=row.tokens, expected=token)
        return row.tokens[0]

    # -- the form -----------------------------------------------------------------------------------

    def _complete(self, prompt: Prompt, body: dict[str, Any], top: int | None, *, draws: bool = False) -> Call:
        body = {"model": self.model, **body}
        if self.extras:
            body["return_token_ids"] = True
        refused = {"temperature", "top_p"} if self.demands.fixed_temperature else set[str]()
        for name in refused | self.demands.left_out:
            body.pop(name, None)
        if self.demands.min_tokens > 1:
            body["max_tokens"] = max(int(body["max_tokens"]), self.demands.min_tokens)
        weight = prompt.weight + int(body["max_tokens"])
        if prompt.chat and prompt.ids is None:
            tokens_field = self.demands.tokens_field or self.chat_tokens_field
            if tokens_field != "max_tokens":
                body[tokens_field] = body.pop("max_tokens")
            body["messages"] = _user(prompt.text)
            if top is not None:
                body |= {"logprobs": True, "top_logprobs": top}
            return Call("/chat/completions", body, prompt.text, weight, draws)
        body["prompt"] = prompt.text if prompt.ids is None else list(prompt.ids)
        if top is not None:
            body["logprobs"] = top
        return Call("/completions", body, prompt.text, weight, draws)

    def _text_of(self, call: Call, choice: dict[str, Any]) -> str:
        if not call.path.endswith("/chat/completions"):
            return string(choice.get("text"), "text")
        content = mapping(choice.get("message"), "message").get("content")
        if content is None and (_thoughts_apart(choice) or finish_of(choice) == "length"):
            return ""  # the length limit was reached before the answer began
        return string(content, "message.content")


def _thoughts_apart(choice: dict[str, Any]) -> bool:
    """Whether a chat's reply has thoughts in a field of their own."""
    message = choice.get("message")
    fields = cast("dict[str, Any]", message) if isinstance(message, dict) else {}
    return any(isinstance(fields.get(name), str) and fields[name] for name in ("reasoning_content", "reasoning"))


def _user(text: str) -> list[dict[str, str]]:
    return [{"role": "user", "content": text}]
