"""RemoteLM: a language model behind HTTP, with the three verbs as far as its server can score at all.

What the server can do is found by a probe at first use (see `probe`) and is named in `capabilities`. Numbers that a
server did not send are never made up: what cannot be a log-probability is passed on as it came, to be excluded and
counted by the caller, and a text that no rung can score is refused.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Sequence

import numpy as np

from dln.arguments import Size, checked
from dln.errors import ProviderError
from dln.lm.base import Capabilities, Completion, Rung, Sampling, Target, TokenLogProbs
from dln.lm.budget import Usage
from dln.lm.checks import check_counts, check_fits
from dln.lm.remote.call import Sender
from dln.lm.remote.dialect import Dialect
from dln.lm.remote.dialect_values import Ids
from dln.lm.remote.engine_completion import completion_of
from dln.lm.remote.engine_fingerprint import fingerprint_of
from dln.lm.remote.engine_session import Session
from dln.lm.remote.ladder import Pair, TargetRung
from dln.lm.remote.ladder_labels import LabelRung
from dln.lm.remote.probe import Probed, probe
from dln.lm.remote.probe_report import ProbeReport
from dln.lm.remote.recording import rescued
from dln.numerics import Floats

__all__ = ["RemoteLM"]

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
        best_rung: no rung above this one is used.
        draws: per context, where labels can only be counted among draws.
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
        best_rung: Rung = "target scoring",
        draws: Size = 16,
    ) -> None:
        self.chat = chat
        self.sender = sender
        self._session = Session(dialect, sender, chat=chat)
        self._name = name
        self._source = f"revision {revision}" if revision else "+".join(sorted(servers))
        self._best: Rung = best_rung
        self._draws = draws
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
            rung=report.rung,
            target_rung=report.target_rung,
        )

    def fingerprint(self) -> str:
        """Kind of server, model (as asked for, as it answers, what it is made from), address or revision, rungs.

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
        with rescued(contexts, lambda i: self._sample(found, [contexts[i]], sampling, [seeds[i]])[0]):
            return self._sample(found, contexts, sampling, seeds)

    def _sample(
        self, found: Probed, contexts: Sequence[str], sampling: Sampling, seeds: Sequence[int]
    ) -> list[Completion]:
        session = self._session
        prompts = session.prompts(contexts)
        self._check_fits([prompt.ids for prompt in prompts], sampling.max_tokens, "context and max_tokens")
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
        rung = self._found.targets
        if rung is None:
            raise ProviderError(
                "this server cannot score texts",
                where=self.name,
                got="; ".join(f"{t.rung}: {t.reason}" for t in self.report.trials if t.purpose == "texts") or None,
                expected="prompt log-probabilities, or log-probabilities of given tokens",
                fix="a server that has them (vLLM, SGLang, `dln serve`), or inference that does without",
            )
        with rescued(contexts, lambda i: self._log_prob(rung, [contexts[i]], [targets[i]])[0]):
            return self._log_prob(rung, contexts, targets)

    def _log_prob(self, rung: TargetRung, contexts: Sequence[str], targets: Sequence[Target]) -> list[TokenLogProbs]:
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
        rows = dict(zip(asked, rung.rows([pairs[i] for i in asked]), strict=True))
        scores: list[TokenLogProbs] = []
        for i, target in enumerate(targets):
            row = rows.get(i, ())
            values = np.array([np.nan] if row is None else [token.log_prob for token in row], dtype=np.float64)
            count = target.text_tokens if owned[i] is not None and isinstance(target, Completion) else None
            scores.append(TokenLogProbs(values, len(values) if count is None else min(count, len(values))))
        return scores

    def choice_log_probs(self, contexts: Sequence[str], labels: Sequence[str]) -> Floats:
        """[N, C] log-mass of each label by the rung that `capabilities` names; a row that cannot be had is NaN.

        Raises:
            InputError: no label, an empty label, or two labels that are the same tokens.
            ContextLengthError: a request is longer than the model's context; nothing has been computed then.
            ProviderError: see `Sender`.
        """
        rung = self._found.labels
        with rescued(contexts, lambda i: self._log_masses(rung, [contexts[i]], labels)[0]):
            return self._log_masses(rung, contexts, labels)

    def _log_masses(self, rung: LabelRung, contexts: Sequence[str], labels: Sequence[str]) -> Floats:
        if self._session.takes_ids and labels and all(labels):
            longest = max(len(ids) for ids in self._session.encode(labels, alone=True))
            prompts = self._session.prompts(contexts)
            self._check_fits([prompt.ids for prompt in prompts], longest, "context and longest label")
        return rung.log_masses(contexts, labels)

    @property
    def _found(self) -> Probed:
        with self._probing:
            if self._probed is None:
                with self._session.bill.shared():
                    self._probed = probe(self._session, best=self._best, draws=self._draws)
            return self._probed

    def _owned(self, target: Target) -> Ids | None:
        """The ids of a draw of this very model, if prompts go as ids."""
        if isinstance(target, Completion) and target.token_ids is not None and self._session.takes_ids:
            return target.token_ids if target.model == self.fingerprint() else None
        return None

    def _check_fits(self, rows: Sequence[Ids | None], more: int, what: str) -> None:
        lengths = [0 if ids is None else len(ids) + more for ids in rows]  # without ids the server counts
        check_fits(lengths, self._session.context_length, what, model=self.name)
