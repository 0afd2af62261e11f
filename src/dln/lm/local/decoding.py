"""Batched decoding: many draws side by side, each the same as if it were alone.

**Scheduling.** Draws wait in an order in which prompts with a common prefix follow each other, the longest first.
When enough rows are free, the next ones join the running batch; a draw leaves with its last token. Each distinct
prefix of the prompts is evaluated once and kept while the next in line needs it. The cache is bounded: when it is
full, the draw that joined last is suspended and continued later with the tokens it has. Models whose caches support
no tree masks (sliding windows, recurrent states) are decoded in fixed batches, padded on the left.

**One token.** The same prefix gives logits that differ in their last bits between batches of different shape, because
floating-point sums are taken in another order. A draw must depend on (context, options, seed) alone, so a choice
comes with the answer to whether such noise could have changed it:

    token = argmin_i  E_i / p_i,   E_i ~ Exp(1),   p = softmax(logits / T) within the top-p nucleus

(an exponential race: the Gumbel-max trick without the logarithms; at temperature 0 simply the largest logit). The E_i
come from a counter-based generator keyed by (seed, position). If another token is within the tolerance of the winner,
or the winner is not certainly inside the nucleus, the choice is *close* and is repeated on the logits of a forward of
this prefix alone, which are a function of the prefix only.
"""

from __future__ import annotations

import hashlib
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import numpy.typing as npt

from dln.lm.base import Completion, Sampling, Target, bucket
from dln.lm.local.kv_cache import Branch, BranchingCache, why_fixed_batches
from dln.lm.local.model import CausalModel
from dln.lm.local.plan import Plan, common_prefix
from dln.lm.local.query import Ids
from dln.lm.local.tokenizer import Codec
from dln.numerics import Floats

if TYPE_CHECKING:
    import torch

    from dln.lm.local.model import CausalModel

__all__ = [
    "REPLACEMENT",
    "Draw",
    "DrawRequest",
    "StopSearch",
    "choose",
    "decode",
    "decode_plain",
    "drawing_probabilities",
    "exponentials",
    "finish",
    "own_ids",
    "stop_at",
    "text_tokens",
]


def drawing_probabilities(p: Floats, sampling: Sampling) -> Floats:
    """What is drawn from: p^(1/temperature), normalised, cut to its top_p nucleus, normalised again."""
    if sampling.temperature == 0:
        return np.eye(len(p))[int(np.argmax(p))]  # argmax takes the first of equals
    if sampling.temperature != 1:
        with np.errstate(over="ignore"):  # a tiny temperature sends all but the best to exp(−inf) = 0
            p = np.exp((np.log(p) - np.log(p.max())) / sampling.temperature)
        p = p / p.sum()
    if sampling.top_p < 1:
        order = np.argsort(-p, kind="stable")
        kept = order[: int(np.searchsorted(np.cumsum(p[order]), sampling.top_p * (1 - 1e-12))) + 1]
        nucleus = np.zeros_like(p)
        nucleus[kept] = p[kept]
        p = nucleus / nucleus.sum()
    return p


Mask = npt.NDArray[np.bool_]


@dataclass(frozen=True, slots=True)
class TokenChoice:
    """A chosen token.

    Attributes:
        token: its id.
        log_prob: log p under the model at temperature 1, in nats.
        sampling_log_prob: log p under the distribution drawn from; 0 at temperature 0.
        close: whether noise below the tolerance could have led to another token.
    """

    token: int
    log_prob: float
    sampling_log_prob: float
    close: bool


def choose(logits: Floats, sampling: Sampling, seed: int, position: int, tolerance: float) -> TokenChoice:
    """The token at `position` of the draw `seed`.

    Args:
        logits: [V] unnormalised log-probabilities.
        sampling: temperature and top_p.
        seed: the draw's seed; without effect at temperature 0.
        position: index of the token within the draw, from 0.
        tolerance: largest difference of a logit between two batch shapes; 0 settles a close choice.
    """
    best = int(np.argmax(logits))
    if not np.isfinite(logits[best]):
        # NaN or +inf is no distribution to draw from: the score says so, and callers exclude the draw.
        return TokenChoice(best, float("nan"), float("nan"), close=False)
    logits = logits - logits[best]
    weights = np.exp(logits)
    log_total = float(np.log(weights.sum()))
    if sampling.temperature == 0:
        # Two logits may each move by the tolerance, towards one another.
        close = tolerance > 0 and bool(np.count_nonzero(logits >= -2 * tolerance) > 1)
        return TokenChoice(best, -log_total, 0.0, close)
    if sampling.temperature != 1:
        with np.errstate(over="ignore"):  # a tiny temperature sends all but the best to exp(−inf) = 0
            weights = np.exp(logits / sampling.temperature)
    p = weights / weights.sum()
    noise = min(2 * tolerance / sampling.temperature, 50.0)  # of the logarithm of a ratio of two p
    sure, possible, kept = _nucleus(p, sampling.top_p, noise)
    with np.errstate(divide="ignore", over="ignore"):
        race = exponentials(seed, position, len(p)) / p
    race[~possible] = np.inf
    winner = int(np.argmin(race))
    rivals = np.count_nonzero(race <= race[winner] * np.exp(noise)) > 1
    return TokenChoice(
        winner,
        float(logits[winner]) - log_total,
        min(0.0, float(np.log(p[winner] / kept))),
        close=tolerance > 0 and bool(rivals or not sure[winner]),
    )


def choose_each(
    logits: torch.Tensor, sampling: Sampling, seeds: Sequence[int], positions: Sequence[int], tolerance: float
) -> list[TokenChoice]:
    """`choose` for each row of logits [B, V]."""
    rows = logits.double().cpu().numpy()
    return [
        choose(row, sampling, seed, position, tolerance)
        for row, seed, position in zip(rows, seeds, positions, strict=True)
    ]


def exponentials(seed: int, position: int, count: int) -> Floats:
    """`count` independent Exp(1) variables, a function of (seed, position) and their index alone.

    SplitMix64 started from a hash of (seed, position): the i-th value is mix(start + (i + 1) γ), so it
    needs no state and is computed for all i at once.
    """
    digest = hashlib.blake2b(repr((seed, position)).encode(), digest_size=8).digest()
    start = np.uint64(int.from_bytes(digest, "little"))
    x = start + np.arange(1, count + 1, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15)  # wraps, as it should
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    x ^= x >> np.uint64(31)
    uniform = ((x >> np.uint64(11)).astype(np.float64) + 0.5) * 2.0**-53  # strictly inside (0, 1)
    return -np.log(uniform)


def _nucleus(p: Floats, top_p: float, noise: float) -> tuple[Mask, Mask, float]:
    """Tokens surely and possibly kept by top_p when each log p may be off by `noise`, and the mass kept.

    A token is kept if the mass of the tokens before it, in falling order, is below top_p.
    """
    if top_p >= 1:
        everything = np.ones(len(p), dtype=np.bool_)
        return everything, everything, 1.0
    # Tokens of p ≤ (1 − top_p) / 2V hold less than half of what is cut: none is kept, nor needs sorting.
    candidates = np.flatnonzero(p >= (1 - top_p) / (2 * len(p)) * np.exp(-2 * noise))
    order = candidates[np.argsort(-p[candidates], kind="stable")]
    falling = p[order]
    before = np.concatenate([[0.0], np.cumsum(falling)])
    kept = before[:-1] < top_p
    sure, possible = np.zeros(len(p), dtype=np.bool_), np.zeros(len(p), dtype=np.bool_)
    if noise == 0:
        sure[order] = possible[order] = kept
    else:
        factor = float(np.exp(noise))
        most = (before[np.searchsorted(-falling, -falling / factor, side="right")] - falling) * factor
        least = before[np.searchsorted(-falling, -falling * factor, side="left")] / factor
        sure[order], possible[order] = most < top_p, least < top_p
    return sure, possible, float(falling[kept].sum())


def own_ids(target: Target, tokens_id: str) -> Ids | None:
    """The ids of a draw of the model `tokens_id` (with or without chat); None for anything else."""
    if not isinstance(target, Completion) or not target.model.startswith(f"{tokens_id}:"):
        return None
    return target.token_ids


def text_tokens(target: Target, tokens_id: str, count: int) -> int:
    """How many of the `count` scored tokens carry text: all, unless an own draw says otherwise."""
    if isinstance(target, Completion) and own_ids(target, tokens_id) is not None and target.text_tokens is not None:
        return min(target.text_tokens, count)
    return count


REPLACEMENT = "\ufffd"
"""What decoders write for bytes that are no character, or not yet."""


class StopSearch:
    """Says after each token whether a stop string has appeared.

    Kept are the ids since the last whole character and as many characters before them as the longest stop
    string could reach back, so that each token costs a decoding of a few ids. Trailing bytes that are no
    character yet are no text; a hit is confirmed on the whole text, which is what counts.

    Args:
        stop: the stop strings.
        text: the text that ids add to what stands before them.
    """

    def __init__(self, stop: Sequence[str], text: Callable[[Sequence[int]], str]) -> None:
        self._stop = stop
        self._text = text
        self._reach = max(map(len, stop), default=1) - 1
        self._ids: list[int] = []
        self._open = 0  # from this id on, characters are not complete
        self._before = ""

    def add(self, token: int) -> bool:
        """Take one more token; whether the text up to here contains a stop string."""
        if not self._stop:
            return False
        self._ids.append(token)
        opened = self._text(self._ids[self._open :])
        seen = self._before + opened.rstrip(REPLACEMENT)
        if opened and not opened.endswith(REPLACEMENT):
            self._open = len(self._ids)
            self._before = seen[max(0, len(seen) - self._reach) :]
        if stop_at(seen, self._stop) is None:
            return False
        return stop_at(self._text(self._ids).rstrip(REPLACEMENT), self._stop) is not None


def stop_at(text: str, stop: Sequence[str]) -> int | None:
    """Where the first stop string in `text` begins, or None."""
    found = [at for at in map(text.find, stop) if at >= 0]
    return min(found) if found else None


@dataclass(frozen=True, slots=True)
class DrawRequest:
    """One draw: the ids it continues and its seed."""

    prompt: tuple[int, ...]
    seed: int


class Draw:
    """A draw in the making.

    Args:
        request: what is drawn.
        sampling: how it is drawn.
        codec: gives texts and terminators.
    """

    def __init__(self, request: DrawRequest, sampling: Sampling, codec: Codec) -> None:
        self.request = request
        self.ids: list[int] = []
        self.log_probs: list[float] = []
        self.sampling_log_probs: list[float] = []
        self.ended = False
        self._max_tokens = sampling.max_tokens
        self._terminators = codec.terminators
        self._search = StopSearch(sampling.stop, codec.text)

    @property
    def prefix(self) -> tuple[int, ...]:
        """The prompt and the tokens so far."""
        return (*self.request.prompt, *self.ids)

    def add(self, choice: TokenChoice) -> None:
        """Take the next token."""
        self.ids.append(choice.token)
        self.log_probs.append(choice.log_prob)
        self.sampling_log_probs.append(choice.sampling_log_prob)
        self.ended = (
            choice.token in self._terminators
            or len(self.ids) >= self._max_tokens
            or self._search.add(choice.token)  # last, for a terminator is no text
        )


def take_tokens(model: CausalModel, draws: Sequence[Draw], logits: torch.Tensor, sampling: Sampling) -> None:
    """Choose the next token of each draw from its row of logits [B, V].

    What the noise of this batch's shape could have decided is chosen from the logits of a forward of the
    draw's prefix alone, which depend on nothing else.
    """
    seeds, positions = [draw.request.seed for draw in draws], [len(draw.ids) for draw in draws]
    choices = choose_each(logits, sampling, seeds, positions, model.noise)
    model.counters.choices += len(draws)
    for draw, choice in zip(draws, choices, strict=True):
        if choice.close:
            model.counters.close_choices += 1
            alone = model.next_logits(draw.prefix)
            draw.add(choose(alone, sampling, draw.request.seed, len(draw.ids), 0.0))
        else:
            draw.add(choice)


def finish(codec: Codec, draw: Draw, sampling: Sampling, model: str) -> Completion:
    """The completion of an ended draw; `model` is the fingerprint written into it."""
    terminated = draw.ids[-1] in codec.terminators
    ids = draw.ids[:-1] if terminated else draw.ids
    text = codec.text(ids)
    cut = stop_at(text, sampling.stop)
    reason: Literal["stop", "length"] = "stop" if terminated or cut is not None else "length"
    count = len(ids)
    if cut is not None:
        text = text[:cut]
        count = codec.text_tokens(ids, text)
    return Completion(
        text,
        tuple(draw.ids),
        tuple(draw.log_probs),
        tuple(draw.sampling_log_probs),
        text_tokens=count,
        finish_reason=reason,
        model=model,
    )


def decode_plain(model: CausalModel, draws: Sequence[Draw], sampling: Sampling) -> list[Draw]:
    """Take all `draws` of one batch to their end, from wherever they are; returns those that were not there yet."""
    draws = [draw for draw in draws if not draw.ended]  # after a shortage of memory, some may be
    if not draws:
        return []
    with model.inference() as torch:
        prompts = list(dict.fromkeys(draw.prefix for draw in draws))
        cache, mask, logits = _prefill(model, prompts)
        # One prefill per prompt, copied to its draws.
        numbers = {prompt: number for number, prompt in enumerate(prompts)}
        source = torch.tensor([numbers[draw.prefix] for draw in draws], device=model.device)
        cache.reorder_cache(source)
        mask, logits = mask[source], logits[source]
        active = list(draws)
        while True:
            take_tokens(model, active, logits, sampling)
            keep = [i for i, draw in enumerate(active) if not draw.ended]
            if not keep:
                return list(draws)
            if len(keep) < len(active):
                source = torch.tensor(keep, device=model.device)
                cache.reorder_cache(source)
                active, mask = [active[i] for i in keep], mask[source]
            mask = torch.cat([mask, mask.new_ones((len(active), 1))], dim=1)
            inputs = torch.tensor([[draw.ids[-1]] for draw in active], device=model.device)
            model.counters.tokens += len(active)
            cache, logits = _step(model, inputs, mask, cache)


def _prefill(model: CausalModel, prompts: Sequence[Sequence[int]]) -> tuple[Any, torch.Tensor, torch.Tensor]:
    """Feed prompts of unequal length; (cache, mask [B, T], logits [B, V] after each).

    Padding is on the left because sliding-window caches count slots: those of a row's last tokens must be
    neighbours of the tokens to come.
    """
    import torch

    width = max(len(prompt) for prompt in prompts)
    inputs = torch.zeros((len(prompts), width), dtype=torch.long)
    mask = torch.zeros_like(inputs)
    for i, prompt in enumerate(prompts):
        inputs[i, width - len(prompt) :] = torch.tensor(list(prompt))
        mask[i, width - len(prompt) :] = 1
    mask = mask.to(model.device)
    model.counters.tokens += sum(len(prompt) for prompt in prompts)
    cache, logits = _step(model, inputs.to(model.device), mask, None)
    return cache, mask, logits


def _step(model: CausalModel, inputs: torch.Tensor, mask: torch.Tensor, cache: Any) -> tuple[Any, torch.Tensor]:
    """Feed the next ids [B, t]; `mask` [B, past + t] says which slots hold tokens. (cache, logits [B, V])."""
    import torch

    size, new = inputs.shape
    cache, slices = model.forward(
        (torch.arange(size, device=model.device), torch.full((size,), new - 1, device=model.device)),
        input_ids=inputs,
        attention_mask=mask,
        position_ids=(mask.cumsum(-1) - 1).clamp(min=0)[:, -new:],
        cache=cache,
        use_cache=True,
    )
    model.counters.reached(cached_tokens=int(mask.numel()))
    return cache, next(slices)


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
