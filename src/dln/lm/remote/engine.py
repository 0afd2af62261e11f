"""RemoteLM: a language model behind HTTP, with the four verbs as far as its server can score.

The abilities of the server are found by a probe at first use (see `probe`) and named in `capabilities`. Values that a
server did not send are never invented: impossible log-probabilities are passed on as they came, to be excluded and
counted by the caller, and a text that no mode can score is refused.
"""

from __future__ import annotations

import datetime
import hashlib
import inspect
import math
import os
import threading
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from pydantic import SecretStr

from dln.arguments import Count, Positive, Size, check_options, checked
from dln.errors import InputError, ProviderError
from dln.lm.base import (
    Capabilities,
    Completion,
    NextRow,
    NextTokens,
    Sampling,
    ScoringMode,
    Target,
    Token,
    TokenLogProbs,
    check_counts,
    check_fits,
)
from dln.lm.meter import Usage
from dln.lm.remote.call import Sender
from dln.lm.remote.dialect import Dialect
from dln.lm.remote.dialects import DIALECTS
from dln.lm.remote.draws import completion_of
from dln.lm.remote.endpoint import Azure, Patience, endpoint_of
from dln.lm.remote.next_tokens import NextScorer
from dln.lm.remote.probe import Probed, ProbeReport, probe
from dln.lm.remote.read import Ids
from dln.lm.remote.scoring import LabelScorer, Pair, TextScorer
from dln.lm.remote.sender import HttpSender
from dln.lm.remote.session import Session, partial_results_kept
from dln.numerics import Floats

__all__ = ["OPTIONS", "RemoteLM", "open_remote"]

COUNTED_BYTES = 256
"""Texts up to this size are counted by the server."""


@checked
class RemoteLM:
    """A model on a server.

    Args:
        dialect: the kind of server and the model's name there.
        sender: what brings calls to the server.
        name: the string that `load_lm` takes to give this model again.
        servers: the base URLs without credentials: they tell models of one name on different servers apart.
        chat: whether a context is a user's turn, and the assistant's turn is drawn or scored.
        revision: the user's word for which model this is; stands for `servers` in the fingerprint then, so that
            cached answers outlive a change of address.
        best_scoring_mode: no better mode than this one is used.
        draws: per context, where labels can only be counted among draws.
        thinking_tokens: for the thoughts of a reasoning model, beyond the length limit of a draw; None to let the
            probe find a number.
    """

    def __init__(
        self,
        dialect: Dialect,
        sender: Sender,
        *,
        name: str,
        servers: Sequence[str] = (),
        chat: bool = False,
        revision: str | None = None,
        best_scoring_mode: ScoringMode = "target scoring",
        draws: Size = 16,
        thinking_tokens: Size | None = None,
    ) -> None:
        self.chat = chat
        self.sender = sender
        self._session = Session(dialect, sender, chat=chat)
        self._name = name
        self._source = f"revision {revision}" if revision else "+".join(sorted(servers))
        self._best: ScoringMode = best_scoring_mode
        self._draws = draws
        self._thinking = thinking_tokens
        self._probing = threading.Lock()
        self._probed: Probed | None = None

    def __deepcopy__(self, memo: dict[int, object]) -> RemoteLM:
        """The model itself: its connections are shared by whatever uses it."""
        return self

    @property
    def name(self) -> str:
        """The string that `load_lm` takes to give this model again."""
        return self._name

    @property
    def report(self) -> ProbeReport:
        """What the server can do; the first use asks it.

        Raises:
            ProviderError: the server cannot be reached, or cannot draw.
        """
        return self._found.report

    @property
    def capabilities(self) -> Capabilities:
        """What the probe found; the first use asks the server."""
        report = self.report
        return Capabilities(
            scores_targets=self._found.targets is not None,
            scores_labels=True,
            token_ids=report.token_ids,
            chat=self.chat,
            context_length=report.context_length if self._session.takes_ids else None,
            top_log_probs=report.top_log_probs,
            label_scoring=report.label_scoring,
            text_scoring=report.text_scoring,
            next_tokens=report.next_tokens,
            thinking_tokens=report.thinking_tokens,
        )

    def fingerprint(self) -> str:
        """Kind of server, model (as asked for, as answered, its origin), address or revision, and scoring modes.

        No credentials are in it. Two servers that serve different models under one name have different
        fingerprints, because of their addresses; a digest keeps them short.
        """
        return fingerprint_of(self.report, self._source, chat=self.chat)

    def count_tokens(self, text: str) -> int:
        """Tokens of `text` as a target by the server's tokenizer; an estimate for long texts, or without tokenizer.

        Counting is asked for text by text, and a call each would cost more than the exact number of a long text is
        worth. What is sent is counted exactly before it is sent.
        """
        size = len(text.encode(errors="replace"))
        if not size:
            return 0
        if self._found and self._session.takes_ids and size <= COUNTED_BYTES:
            return len(self._session.encode([text], alone=True)[0])
        return math.ceil(size * self._session.tokens_per_byte)

    def take_usage(self) -> Usage | None:
        """The server's own count for this thread, and the probe, since last asked; None if it did not say for all."""
        return self._session.bill.take()

    def sample(self, contexts: Sequence[str], sampling: Sampling, seeds: Sequence[int]) -> list[Completion]:
        """One draw per context, each by a call of its own, so that it cannot depend on its neighbours.

        Raises:
            ContextLengthError: a context and `max_tokens` exceed the model's context; nothing has been drawn then.
            ProviderError: see `Sender`.
        """
        check_counts("seeds", contexts, seeds)
        if not contexts:
            return []
        found = self._found
        with partial_results_kept(contexts, lambda i: self._sample(found, [contexts[i]], sampling, [seeds[i]])[0]):
            return self._sample(found, contexts, sampling, seeds)

    def _sample(
        self, found: Probed, contexts: Sequence[str], sampling: Sampling, seeds: Sequence[int]
    ) -> list[Completion]:
        session = self._session
        if found.report.fixed_temperature:
            sampling = replace(sampling, temperature=1.0, top_p=1.0)
        prompts = session.prompts(contexts)
        more = sampling.max_tokens + found.report.thinking_tokens
        self._check_fits([prompt.ids for prompt in prompts], more, "context and max_tokens")
        top = None
        if found.keeps_log_probs:
            plain = sampling.temperature == 0 or (sampling.temperature == 1 and sampling.top_p == 1)
            needed = not plain and found.report.densities == "model" and not session.tells_densities
            top = max(1, found.report.top_log_probs) if needed else 1
        calls = [
            session.dialect.draw(prompt, sampling, seed if sampling.temperature else None, top)
            for prompt, seed in zip(prompts, seeds, strict=True)
        ]
        drawn = session.send(calls, session.dialect.read_draw)
        return [completion_of(draw, sampling, found.report, self.fingerprint()) for draw in drawn]

    def log_prob(self, contexts: Sequence[str], targets: Sequence[Target]) -> list[TokenLogProbs]:
        """log p of each target's tokens given its context, pair by pair; an empty target has no values.

        A pair whose boundary lies within a token of the server has the one value NaN.

        Raises:
            ContextLengthError: a request is longer than the model's context; nothing has been computed then.
            ProviderError: the server cannot score texts; or see `Sender`.
        """
        check_counts("targets", contexts, targets)
        scorer = self._found.targets
        if scorer is None:
            raise ProviderError(
                "this server cannot score texts",
                where=self.name,
                got="; ".join(f"{t.mode}: {t.reason}" for t in self.report.trials if t.purpose == "texts") or None,
                expected="prompt log-probabilities, or log-probabilities of given tokens",
                fix="a server that has them (vLLM, SGLang, `dln serve`), or inference that does without",
            )
        with partial_results_kept(contexts, lambda i: self._log_prob(scorer, [contexts[i]], [targets[i]])[0]):
            return self._log_prob(scorer, contexts, targets)

    def _log_prob(self, scorer: TextScorer, contexts: Sequence[str], targets: Sequence[Target]) -> list[TokenLogProbs]:
        owned = [self._owned(target) for target in targets]
        texts = [str(target) for target in targets]
        plain = dict.fromkeys(text for text, mine in zip(texts, owned, strict=True) if mine is None)
        ids: dict[str, Ids] = {}
        if self._session.takes_ids:
            ids = dict(zip(plain, self._session.encode(list(plain), alone=True), strict=True))
        pairs = [
            Pair(prompt, text if mine is None else "", ids.get(text, ()) if mine is None else mine)
            for prompt, text, mine in zip(self._session.prompts(contexts), texts, owned, strict=True)
        ]
        self._check_fits([pair.joined.ids for pair in pairs], 0, "context and target")
        asked = [i for i, pair in enumerate(pairs) if pair.ids or pair.text]
        rows = dict(zip(asked, scorer.rows([pairs[i] for i in asked]), strict=True))
        scores: list[TokenLogProbs] = []
        for i, target in enumerate(targets):
            row = rows.get(i, ())
            values = np.array([np.nan] if row is None else [token.log_prob for token in row], dtype=np.float64)
            count = target.text_tokens if owned[i] is not None and isinstance(target, Completion) else None
            scores.append(TokenLogProbs(values, len(values) if count is None else min(count, len(values))))
        return scores

    def choice_log_probs(self, contexts: Sequence[str], labels: Sequence[str]) -> Floats:
        """[N, C] log-mass of each label in the mode that `capabilities` names; a row that is unavailable is NaN.

        Raises:
            InputError: no label, an empty label, or two labels that are the same tokens.
            ContextLengthError: a request is longer than the model's context; nothing has been computed then.
            ProviderError: see `Sender`.
        """
        scorer = self._found.labels
        with partial_results_kept(contexts, lambda i: self._log_masses(scorer, [contexts[i]], labels)[0]):
            return self._log_masses(scorer, contexts, labels)

    def _log_masses(self, scorer: LabelScorer, contexts: Sequence[str], labels: Sequence[str]) -> Floats:
        if self._session.takes_ids and labels and all(labels):
            longest = max(len(ids) for ids in self._session.encode(labels, alone=True))
            prompts = self._session.prompts(contexts)
            self._check_fits([prompt.ids for prompt in prompts], longest, "context and longest label")
        return scorer.log_masses(contexts, labels)

    def next_token_log_probs(self, contexts: Sequence[str], tokens: Sequence[Token] = (), top: Size = 0) -> NextTokens:
        """log p of the given tokens after each context, and the most probable tokens, at most as many as are returned.

        Where the server tells only the most probable tokens, the others are NaN, and `bounds` has the smallest
        returned log p.

        Raises:
            InputError: a token that the server does not encode as one token, where it tells all.
            ContextLengthError: a context is longer than the model's; nothing has been computed then.
            ProviderError: the server returns no log-probabilities; or see `Sender`.
        """
        scorer = self._found.following
        if scorer is None:
            raise ProviderError(
                "this server does not return log-probabilities of next tokens",
                where=self.name,
                got="; ".join(f"{t.mode}: {t.reason}" for t in self.report.trials if t.purpose == "next tokens")
                or None,
                expected="log-probabilities of given tokens, or of the most probable ones",
                fix="a server that has them (vLLM, SGLang, `dln serve`), or an output layer of label words",
            )
        with partial_results_kept(contexts, lambda i: self._next(scorer, [contexts[i]], tokens, top)[0]):
            return NextTokens.of(self._next(scorer, contexts, tokens, top), len(tokens))

    def _next(self, scorer: NextScorer, contexts: Sequence[str], tokens: Sequence[Token], top: int) -> list[NextRow]:
        if self._session.takes_ids:
            self._check_fits([prompt.ids for prompt in self._session.prompts(contexts)], 1, "context and one token")
        return scorer.rows(contexts, tokens, top)

    @property
    def _found(self) -> Probed:
        with self._probing:
            if self._probed is None:
                with self._session.bill.shared():
                    self._probed = probe(self._session, best=self._best, draws=self._draws, thinking=self._thinking)
            return self._probed

    def _owned(self, target: Target) -> Ids | None:
        """The ids of a draw of this very model, if prompts go as ids."""
        if isinstance(target, Completion) and target.token_ids is not None and self._session.takes_ids:
            return target.token_ids if target.model == self.fingerprint() else None
        return None

    def _check_fits(self, rows: Sequence[Ids | None], more: int, what: str) -> None:
        lengths = [0 if ids is None else len(ids) + more for ids in rows]  # without ids the server counts
        check_fits(lengths, self._session.context_length, what, model=self.name)


ENGINE_VERSION = "1"


def fingerprint_of(report: ProbeReport, source: str, *, chat: bool) -> str:
    """Kind of server, model (as asked for, as answered, its origin), address or revision, and scoring modes.

    Args:
        report: what the probe found.
        source: the addresses without credentials, or the user's word for the revision.
        chat: whether contexts are a user's turns.
    """
    kind = "chat" if chat else "completion"
    what = [
        report.dialect,
        report.model,
        report.served_model or "",
        report.root or "",
        source,
        kind,
        report.label_scoring,
        report.text_scoring,
        ENGINE_VERSION,
        *([f"thinking {report.thinking_tokens}"] if report.thinking_tokens else []),
        *(["fixed temperature"] if report.fixed_temperature else []),
    ]
    digest = hashlib.sha256("\x1f".join(what).encode()).hexdigest()[:16]
    served = report.served_model or report.model
    return f"{report.dialect}:{served}:{kind}:{report.label_scoring}:{report.text_scoring}:{digest}"


PATIENCE = {
    "timeout": "read_seconds",
    "connect_timeout": "connect_seconds",
    "deadline": "deadline_seconds",
    "max_concurrency": "max_concurrency",
    "max_retries": "max_retries",
}


def _options(
    *,
    base_url: str | Sequence[str] | None = None,
    api_key: str | SecretStr | None = None,
    chat: bool | None = None,
    timeout: Positive | None = None,
    connect_timeout: Positive | None = None,
    deadline: Positive | None = None,
    max_concurrency: Count | None = None,
    max_retries: Size | None = None,
    headers: Mapping[str, str | SecretStr] | None = None,
    api_version: str | datetime.date | None = None,
    revision: str | int | float | None = None,
    best_scoring_mode: ScoringMode = "target scoring",
    label_draws: Size = 16,
    thinking_tokens: Size | None = None,
) -> None:
    """What `load_lm` takes for a model on a server; times in seconds."""


OPTIONS = tuple(inspect.signature(_options).parameters)
"""The names of these options."""

AZURE_VERSION = "2024-10-21"

FALLBACK_URL, FALLBACK_KEY = "OPENAI_BASE_URL", "OPENAI_API_KEY"


def open_remote(
    kind: str, rest: str, spec: str, options: Mapping[str, Any], environment: Mapping[str, str] | None = None
) -> RemoteLM:
    """The model that a string such as `vllm/org/name:chat` names. Nothing is sent yet.

    Args:
        kind: the prefix, one of `DIALECTS`.
        rest: what follows the prefix: the model's name on the server, with `:chat` or `:completion` if wanted.
        spec: the whole string.
        options: see `OPTIONS`; times in seconds, `base_url` one address or several (replicas), `best_scoring_mode` the
            best scoring mode that is used, `label_draws` per context where labels can only be counted,
            `thinking_tokens` per draw for the thoughts of a reasoning model.
        environment: in place of the process's own.

    Raises:
        InputError: an unknown option, no address, no key, or values that cannot be used.
    """
    if "best_rung" in options:  # its name in version 0.1
        options = {
            "best_scoring_mode": options["best_rung"],
            **{name: value for name, value in options.items() if name != "best_rung"},
        }
    check_options(options, _options, f"load_lm({spec!r})")
    dialect = DIALECTS[kind]
    variables = os.environ if environment is None else environment
    model, chat = _chat(dialect, rest, options.get("chat"))
    urls, fallback = _addresses(dialect, spec, options.get("base_url"), variables)
    best: ScoringMode = options.get("best_scoring_mode", "target scoring")
    draws: int = options.get("label_draws", 16)
    patience = {field: options[name] for name, field in PATIENCE.items() if options.get(name) is not None}
    azure = kind == "azure" and not any("/openai" in url for url in urls)
    endpoint = endpoint_of(
        model,
        urls,
        api_key=options.get("api_key"),
        key_variables=(*dialect.key_variables, *([FALLBACK_KEY] if fallback else [])),
        key_needed=dialect.hosted and (kind == "azure" or list(urls) == [dialect.default_url]),
        headers=options.get("headers"),
        patience=Patience(**patience),
        azure=Azure(model, _version(options, variables)) if azure else None,
        environment=variables,
    )
    return RemoteLM(
        dialect(model, suffix=rest.removeprefix(model)),
        HttpSender(endpoint),
        name=f"{kind}/{model}{_suffix(dialect, chat)}",
        servers=endpoint.base_urls,
        chat=chat,
        # the command line reads `revision=1` as a number, and a version as a date
        revision=None if options.get("revision") is None else str(options["revision"]),
        best_scoring_mode=best,
        draws=draws,
        thinking_tokens=options.get("thinking_tokens"),
    )


def _chat(dialect: type[Dialect], rest: str, option: bool | None) -> tuple[str, bool]:
    """The model's bare name, and whether it is used as a chat model; the option wins over the string."""
    for suffix, chat in ((":chat", True), (":completion", False)):
        if rest.endswith(suffix):
            return rest.removesuffix(suffix), chat if option is None else bool(option)
    return rest, dialect.chat_by_default if option is None else bool(option)


def _suffix(dialect: type[Dialect], chat: bool) -> str:
    if chat == dialect.chat_by_default:
        return ""
    return ":chat" if chat else ":completion"


def _addresses(
    dialect: type[Dialect], spec: str, given: str | Sequence[str] | None, variables: Mapping[str, str]
) -> tuple[list[str], bool]:
    """The base URLs, and whether they come from the variable that OpenAI's own tools read."""
    if given:
        return ([given] if isinstance(given, str) else list(given)), False
    for name in dialect.url_variables:
        if variables.get(name):
            return [url.strip() for url in variables[name].split(",") if url.strip()], name == FALLBACK_URL
    if dialect.default_url is not None:
        return [dialect.default_url], False
    raise InputError(
        "no server URL given for this model",
        where=spec,
        got="no base URL",
        expected=f"base_url, or one of {', '.join(f'${name}' for name in dialect.url_variables)}",
        fix=f"--lm {spec} --base-url {dialect.example_url}",
    )


def _version(options: Mapping[str, Any], variables: Mapping[str, str]) -> str:
    return str(options.get("api_version") or variables.get("OPENAI_API_VERSION") or AZURE_VERSION)
