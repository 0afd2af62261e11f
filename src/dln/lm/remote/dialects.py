"""Kinds of servers, each by what distinguishes it from the OpenAI form with vLLM's additions."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, ClassVar, cast

from dln.lm.base import Sampling
from dln.lm.remote.call import Call
from dln.lm.remote.dialect import Dialect, Drawn, Forcing, Prompt, TokensField
from dln.lm.remote.read import (
    Echo,
    Ids,
    ScoredToken,
    TokenRow,
    check_next,
    choices_of,
    ids_of,
    integer,
    lay_along,
    malformed,
    mapping,
    number,
    sequence,
    string,
    token_row,
    without_thoughts,
)

__all__ = ["DIALECTS", "VLLM", "Azure", "Fireworks", "OpenAI", "SGLang", "Together"]


@dataclass(frozen=True)
class _Texts(Dialect):
    """The OpenAI form and nothing else: texts in, texts and log-probabilities out."""

    extras: bool = False

    hosted: ClassVar[bool] = True
    has_tokenizer: ClassVar[bool] = False
    scores_ids: ClassVar[bool] = False
    picks_tokens: ClassVar[bool] = False
    forcings: ClassVar[tuple[Forcing, ...]] = ()


@dataclass(frozen=True)
class OpenAI(_Texts):
    """OpenAI."""

    name: ClassVar[str] = "openai"
    default_url: ClassVar[str | None] = "https://api.openai.com/v1"
    key_variables: ClassVar[tuple[str, ...]] = ("OPENAI_API_KEY",)
    url_variables: ClassVar[tuple[str, ...]] = ("OPENAI_BASE_URL",)
    chat_by_default: ClassVar[bool] = True
    chat_tokens_field: ClassVar[TokensField] = "max_completion_tokens"


@dataclass(frozen=True)
class Azure(OpenAI):
    """OpenAI, hosted by Azure."""

    name: ClassVar[str] = "azure"
    default_url: ClassVar[str | None] = None
    example_url: ClassVar[str] = "https://my-resource.openai.azure.com/openai/v1"
    key_variables: ClassVar[tuple[str, ...]] = ("AZURE_OPENAI_API_KEY",)
    url_variables: ClassVar[tuple[str, ...]] = ("AZURE_OPENAI_BASE_URL", "AZURE_OPENAI_ENDPOINT")


@dataclass(frozen=True)
class Ollama(OpenAI):
    """An Ollama server."""

    name: ClassVar[str] = "ollama"
    hosted: ClassVar[bool] = False
    default_url: ClassVar[str | None] = "http://localhost:11434/v1"
    example_url: ClassVar[str] = "http://localhost:11434/v1"
    key_variables: ClassVar[tuple[str, ...]] = ("OLLAMA_API_KEY",)
    url_variables: ClassVar[tuple[str, ...]] = ("OLLAMA_BASE_URL",)
    chat_tokens_field: ClassVar[TokensField] = "max_tokens"

    def wire_seed(self, seed: int) -> int:
        """The seed as the server takes it: 31 bits, so that it stays a C int."""
        return seed % 2**31


@dataclass(frozen=True)
class VLLM(Dialect):
    """A vLLM server, or one that answers like it."""

    name: ClassVar[str] = "vllm"
    key_variables: ClassVar[tuple[str, ...]] = ("VLLM_API_KEY",)
    url_variables: ClassVar[tuple[str, ...]] = ("VLLM_BASE_URL", "OPENAI_BASE_URL")


@dataclass(frozen=True)
class SGLang(Dialect):
    """An SGLang server."""

    name: ClassVar[str] = "sglang"
    example_url: ClassVar[str] = "http://localhost:30000/v1"
    key_variables: ClassVar[tuple[str, ...]] = ("SGLANG_API_KEY",)
    url_variables: ClassVar[tuple[str, ...]] = ("SGLANG_BASE_URL", "OPENAI_BASE_URL")
    echoes: ClassVar[bool] = False
    forcings: ClassVar[tuple[Forcing, ...]] = ("logit_bias",)

    def draw(self, prompt: Prompt, sampling: Sampling, seed: int | None, top: int | None) -> Call:
        """One draw."""
        if prompt.chat and prompt.ids is None:
            return super().draw(prompt, sampling, seed, top)
        parameters: dict[str, Any] = {
            "max_new_tokens": sampling.max_tokens + self.demands.thinking_tokens,
            "temperature": sampling.temperature,
            "top_p": sampling.top_p,
        }
        if sampling.stop and not self.demands.thinking_tokens:
            parameters["stop"] = list(sampling.stop)
        if seed is not None:
            parameters["sampling_seed"] = self.wire_seed(seed)
        fields: dict[str, Any] = {}
        if top is not None:
            fields |= {"return_logprob": True, "return_text_in_logprobs": True, "top_logprobs_num": top}
        return self._generate(prompt, parameters, fields, draws=sampling.temperature > 0 and seed is None)

    def read_draw(self, call: Call, reply: Any) -> Drawn:
        """The draw, its ids from the log-probabilities, or from `output_ids`."""
        if call.path != "//generate":
            return super().read_draw(call, reply)
        text, meta = string(_reply(reply).get("text"), "text"), _meta(reply)
        reason = meta.get("finish_reason")
        kind = cast("dict[str, Any]", reason).get("type") if isinstance(reason, dict) else reason
        if kind in ("abort", "error"):
            raise malformed("the text was not finished by the model", where="finish_reason", got=kind)
        listed = meta.get("output_token_logprobs")
        tokens = tuple(_triple(entry) for entry in sequence(listed, "output_token_logprobs")) if listed else ()
        tops = sequence(meta.get("output_top_logprobs") or [], "output_top_logprobs")
        row = TokenRow(tokens, tuple(_triples(entry) for entry in tops))
        ids = _reply(reply).get("output_ids")
        drawn = ids_of(ids, "output_ids") if ids is not None else None
        if drawn is None and tokens:
            drawn = tuple(integer(token.id, "output_token_logprobs") for token in tokens)
        if drawn is not None and tokens and len(drawn) != len(tokens):
            raise malformed("ids and log-probabilities differ in number", where="output_ids", got=len(drawn))
        finish = "length" if kind == "length" else "stop"
        answer, thought = without_thoughts(text)
        return Drawn(answer, finish, TokenRow(), thought=True) if thought else Drawn(text, finish, row, drawn)

    def score(self, prompt: Prompt, start: int) -> Call:
        """Log-probabilities of the prompt's ids from `start` on."""
        fields = {"return_logprob": True, "logprob_start_len": start - 1}
        return self._generate(prompt, {"max_new_tokens": 0, "temperature": 0.0}, fields)

    def read_score(self, call: Call, reply: Any) -> tuple[ScoredToken, ...]:
        """The tokens from `start` on.

        Raises:
            MalformedReply: the entries are not those of the ids that were sent (missing, too few, shifted).
        """
        body = cast("dict[str, Any]", call.body)
        sent = body["input_ids"][body["logprob_start_len"] :]
        entries = [_triple(e) for e in sequence(_meta(reply).get("input_token_logprobs"), "input_token_logprobs")]
        if [entry.id for entry in entries] != sent:
            raise malformed("the entries are of other tokens", where="input_token_logprobs", got=entries, expected=sent)
        return tuple(entries[1:])

    def next_tokens(self, prompt: Prompt, top: int, wanted: Ids, length: int = 1) -> Call:
        """The likeliest next tokens, or `wanted` ones."""
        if prompt.chat and prompt.ids is None:
            return super().next_tokens(prompt, top, wanted, length)
        fields: dict[str, Any] = {"return_logprob": True, "return_text_in_logprobs": not wanted}
        fields |= {"token_ids_logprob": list(wanted)} if wanted else {"top_logprobs_num": top}
        return self._generate(prompt, {"max_new_tokens": length, "temperature": 0.0}, fields)

    def read_next(self, call: Call, reply: Any) -> TokenRow:
        """The greedy tokens, and at each place the likeliest, or those that were wanted."""
        if call.path != "//generate":
            return super().read_next(call, reply)
        wanted = tuple(cast("dict[str, Any]", call.body).get("token_ids_logprob") or ())
        meta = _meta(reply)
        where = "output_token_ids_logprobs" if wanted else "output_top_logprobs"
        tokens = tuple(_triple(entry) for entry in sequence(meta.get("output_token_logprobs"), "output_token_logprobs"))
        return check_next(TokenRow(tokens, tuple(_triples(e) for e in sequence(meta.get(where), where))), wanted)

    def force(self, prompt: Prompt, token: int, how: Forcing) -> Call:
        """One step of decoding with all weight on `token`."""
        parameters = {"max_new_tokens": 1, "temperature": 0.0, "logit_bias": {str(token): 100}}
        return self._generate(prompt, parameters, {"return_logprob": True})

    def read_force(self, call: Call, reply: Any) -> ScoredToken:
        """The token with its log-probability."""
        wanted = [int(key) for key in cast("dict[str, Any]", call.body)["sampling_params"]["logit_bias"]]
        tokens = [_triple(entry) for entry in sequence(_meta(reply).get("output_token_logprobs"), "logprobs")]
        if [token.id for token in tokens] != wanted:
            raise malformed("another token than the forced one", where="logprobs", got=tokens, expected=wanted)
        return tokens[0]

    def _generate(
        self, prompt: Prompt, parameters: dict[str, Any], fields: dict[str, Any], *, draws: bool = False
    ) -> Call:
        body: dict[str, Any] = {"text": prompt.text} if prompt.ids is None else {"input_ids": list(prompt.ids)}
        body |= {"sampling_params": parameters, **fields}
        return Call("//generate", body, prompt.text, prompt.weight + parameters["max_new_tokens"], draws)


def _reply(reply: Any) -> dict[str, Any]:
    replies = cast("list[Any]", reply) if isinstance(reply, list) else [reply]
    if len(replies) != 1:
        raise malformed("not one reply", where="reply", got=len(replies), expected=1)
    return mapping(replies[0], "reply")


def _meta(reply: Any) -> dict[str, Any]:
    return mapping(_reply(reply).get("meta_info"), "meta_info")


def _triples(entry: Any) -> tuple[ScoredToken, ...]:
    return tuple(_triple(token) for token in sequence(entry or [], "logprobs"))


def _triple(entry: Any) -> ScoredToken:
    values = sequence(entry, "logprobs")
    if len(values) < 2:
        raise malformed("no pair of log-probability and id", where="logprobs", got=values)
    text = values[2] if len(values) > 2 else None
    return ScoredToken(
        integer(values[1], "logprobs"),
        None if text is None else string(text, "logprobs"),
        number(values[0], "logprobs"),
    )


@dataclass(frozen=True)
class Together(_Texts):
    """Together's completions and chat: texts in, log-probabilities out."""

    name: ClassVar[str] = "together"
    default_url: ClassVar[str | None] = "https://api.together.xyz/v1"
    key_variables: ClassVar[tuple[str, ...]] = ("TOGETHER_API_KEY",)
    url_variables: ClassVar[tuple[str, ...]] = ("TOGETHER_BASE_URL",)
    echo_tokens: ClassVar[tuple[int, ...]] = (1, 0)

    def _complete(self, prompt: Prompt, body: dict[str, Any], top: int | None, *, draws: bool = False) -> Call:
        call = super()._complete(prompt, body, top, draws=draws)
        fields = dict(cast("dict[str, Any]", call.body))
        if "top_logprobs" in fields:  # a number in chat too
            fields["logprobs"] = fields.pop("top_logprobs")
        return replace(call, body=fields)

    def read_echo(self, call: Call, reply: Any) -> Echo:
        """The prompt's tokens.

        Raises:
            MalformedReply: there is no prompt in the reply (echo ignored), or its tokens are not those of ours.
        """
        rows = sequence(mapping(reply, "reply").get("prompt") or [], "prompt")
        if len(rows) != 1:
            raise malformed("the prompt was not echoed", where="prompt", got=len(rows), expected=1)
        row = token_row(mapping(rows[0], "prompt").get("logprobs"), "prompt.logprobs")
        if not row.tokens:
            raise malformed("no log-probabilities of the prompt", where="prompt.logprobs")
        return lay_along(row, cast("dict[str, Any]", call.body)["prompt"], 0)


@dataclass(frozen=True)
class Fireworks(_Texts):
    """Fireworks' completions and chat: texts in, log-probabilities out."""

    name: ClassVar[str] = "fireworks"
    default_url: ClassVar[str | None] = "https://api.fireworks.ai/inference/v1"
    key_variables: ClassVar[tuple[str, ...]] = ("FIREWORKS_API_KEY",)
    url_variables: ClassVar[tuple[str, ...]] = ("FIREWORKS_BASE_URL",)
    top_choices: ClassVar[tuple[int, ...]] = (5,)
    echo_tokens: ClassVar[tuple[int, ...]] = (0, 1)

    def echo(self, prompt: Prompt, target: str, max_tokens: int) -> Call:
        """The end of the prompt, long enough to hold the target."""
        body: dict[str, Any] = {"max_tokens": max_tokens, "temperature": 0.0}
        body["echo_last"] = len(target.encode()) + 1
        return self._complete(prompt, body, 1)

    def read_echo(self, call: Call, reply: Any) -> Echo:
        """The last tokens of the prompt.

        Raises:
            MalformedReply: what came back is not the end of the prompt (echo ignored).
        """
        choice = choices_of(reply)[0]
        row = token_row(choice.get("logprobs"))
        if not row.tokens:
            raise malformed("no log-probabilities of the prompt", where="logprobs", got=choice.get("logprobs"))
        body = cast("dict[str, Any]", call.body)
        return lay_along(row, body["prompt"], max(1, body["max_tokens"]), last=body["echo_last"])


DIALECTS: dict[str, type[Dialect]] = {
    kind.name: kind for kind in (OpenAI, Azure, VLLM, SGLang, Together, Fireworks, Ollama, Dialect)
}
"""Known kinds of servers by the prefix of a model string; another one is one more file and one more entry."""
