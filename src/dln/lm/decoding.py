"""Batched decoding: many draws side by side, each as if it were alone.

Draws wait in an order in which those of one prompt, and prompts that begin alike, follow each other, the
longest first. Whenever enough rows are free the next ones join the running batch; a draw leaves with its last
token. Each distinct prefix of the prompts is evaluated once and stays while the next in line needs it. The
cache is bounded: when it is full, the draw that joined last gives way, and goes on later with the tokens it has.

What keeps neighbours from mattering is `token_choice`: every choice that the noise of a batch could have
changed is settled on the logits of a forward of that draw's prefix alone. So when a draw joins, gives way, or
with whom it runs changes nothing of it.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence

from dln.lm.base import Completion, Sampling
from dln.lm.batches import bucket
from dln.lm.branching import Branch, BranchingCache, why_fixed_batches
from dln.lm.causal_model import CausalModel
from dln.lm.draws import Draw, DrawRequest, finish, take_tokens
from dln.lm.plain_decoding import decode_plain
from dln.lm.plan import Plan
from dln.lm.query import Ids
from dln.lm.tokens import Codec
from dln.lm.visiting_order import common_prefix

__all__ = ["decode"]

ROOM_TO_GROW = 16
"""Tokens that must be free for each draw before another one joins, so that it need not give way at once."""

SMALLEST_CACHE = 64
"""Below this many tokens, a smaller cache would not be the cure of a shortage of memory."""


def decode(
    model: CausalModel,
    codec: Codec,
    requests: Sequence[DrawRequest],
    sampling: Sampling,
    *,
    batch_rows: int,
    batch_tokens: int,
    fingerprint: str,
) -> list[Completion]:
    """One completion per request; equal requests are drawn once.

    Args:
        model: gives the logits.
        codec: gives texts and terminators.
        requests: prompts and seeds.
        sampling: options of all draws.
        batch_rows: at most this many draws side by side.
        batch_tokens: at most this many tokens with their keys and values in the cache, prompts and draws
            together; more only for a draw that needs them alone.
        fingerprint: written into the completions.
    """
    if sampling.temperature == 0:
        requests = [DrawRequest(request.prompt, 0) for request in requests]
    place = {prompt: i for i, prompt in enumerate(Plan.of([request.prompt for request in requests]).sequences)}
    distinct = sorted(dict.fromkeys(requests), key=lambda request: place[request.prompt])
    draws = [Draw(request, sampling, codec) for request in distinct]
    with model.inference():
        if why_fixed_batches(model) is None:
            _decode_branching(model, draws, sampling, batch_rows, batch_tokens)
        else:
            for batch in bucket([len(draw.request.prompt) for draw in draws], batch_tokens, batch_rows):
                model.halving(lambda part: decode_plain(model, part, sampling), [draws[i] for i in batch])
    done = {draw.request: finish(codec, draw, sampling, fingerprint) for draw in draws}
    return [done[request] for request in requests]


def _decode_branching(
    model: CausalModel, draws: Sequence[Draw], sampling: Sampling, batch_rows: int, batch_tokens: int
) -> None:
    """Take all draws to their end; where the accelerator's memory does not suffice, with half as many at a time."""
    import torch

    waiting = [draw for draw in draws if not draw.ended]
    try:
        _Running(model, waiting, sampling, batch_rows, batch_tokens).run()
    except torch.OutOfMemoryError as error:
        if batch_rows == 1 and batch_tokens < SMALLEST_CACHE:
            raise model.too_large() from error
    else:
        return
    # Outside the handler, or the traceback would hold the memory of the failed attempt.
    model.after_shortage()
    _decode_branching(model, draws, sampling, max(1, batch_rows // 2), max(1, batch_tokens // 2))


class _Running:
    """The draws that are running, those that wait, and the cache they share."""

    def __init__(
        self, model: CausalModel, draws: Sequence[Draw], sampling: Sampling, batch_rows: int, batch_tokens: int
    ) -> None:
        self._model = model
        self._sampling = sampling
        self._rows = batch_rows
        self._tokens = batch_tokens
        # A prefill needs no vocabulary-sized rows, but its forwards stay as large as those of scoring.
        self._cache = BranchingCache(model, max(1, min(batch_tokens, model.usual_batch_tokens)))
        self._waiting = deque(draws)
        self._active: list[tuple[Draw, Branch]] = []
        self._held: Branch | None = None

    def run(self) -> None:
        while self._waiting or self._active:
            free = self._rows - len(self._active)
            # Joining in groups, so that prefills are few and large.
            if self._waiting and (not self._active or free >= min(len(self._waiting), max(1, self._rows // 8))):
                self._join()
            self._give_way()
            if self._active:
                draws, branches = zip(*self._active, strict=True)
                logits = self._cache.step(branches, [draw.ids[-1] for draw in draws])
                take_tokens(self._model, draws, logits, self._sampling)
                self._drop_ended()

    def _join(self) -> None:
        """Let draws join while rows and tokens last; at least one if none is running."""
        joining: list[Draw] = []
        added = 0
        last: Ids = ()
        held, self._held = self._held, None  # given up at the end: what joins needs it
        while self._waiting and len(self._active) + len(joining) < self._rows:
            prefix = self._waiting[0].prefix
            new = 0 if prefix == last else len(prefix) - max(self._cache.known(prefix), common_prefix(prefix, last))
            rows = len(self._active) + len(joining) + 1
            if rows > 1 and self._cache.used + added + new + rows * ROOM_TO_GROW > self._tokens:
                break
            joining.append(self._waiting.popleft())
            added, last = added + new, prefix
        if joining:
            branches, logits = self._cache.enter([draw.prefix for draw in joining])
            self._active.extend(zip(joining, branches, strict=True))
            take_tokens(self._model, joining, logits, self._sampling)
        if self._waiting:
            self._held = self._cache.hold(self._waiting[0].prefix)
        if held is not None:
            self._cache.leave(held)
        self._drop_ended()

    def _give_way(self) -> None:
        """Make room for one more token of each draw."""
        while self._active and self._cache.used + len(self._active) > self._tokens:
            if len(self._active) == 1:
                self._let_go()
                return
            draw, branch = self._active.pop()
            self._cache.leave(branch)
            self._waiting.appendleft(draw)

    def _drop_ended(self) -> None:
        for draw, branch in self._active:
            if draw.ended:
                self._cache.leave(branch)
        self._active = [(draw, branch) for draw, branch in self._active if not draw.ended]

    def _let_go(self) -> None:
        if self._held is not None:
            self._cache.leave(self._held)
            self._held = None
