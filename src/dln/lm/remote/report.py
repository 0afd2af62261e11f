"""What a server has shown that it can do: a value for the run's record and for `dln doctor`."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any, Literal

from dln.lm.base import ScoringMode

__all__ = ["Densities", "ProbeReport", "Seeds", "Trial"]


Seeds = Literal["honoured", "ignored", "unknown"]


Densities = Literal["model", "sampling", "unknown", "none"]


@dataclass(frozen=True, slots=True)
class Trial:
    """One scoring mode, tried.

    Args:
        purpose: what it was tried for.
        mode: which.
        works: whether it may be used.
        reason: why, or why not.
    """

    purpose: Literal["texts", "labels"]
    mode: ScoringMode
    works: bool
    reason: str


@dataclass(frozen=True, slots=True)
class ProbeReport:
    """What was found; two probes of one server are equal (speeds apart).

    Attributes:
        dialect: the kind of server, as the model string names it.
        model: the name that was asked for.
        served_model: the name that answered; None if replies name none.
        root: what the server says the model is made from; None if it does not.
        chat: whether contexts are a user's turns.
        label_scoring: how labels are scored.
        text_scoring: how texts are scored; "accuracy" if they are not.
        trials: every scoring mode that was tried, in order, and why it was taken or not.
        tokenizer: what is known of the server's tokenizer.
        token_ids: whether prompts and draws are token ids.
        context_length: in tokens; None if unknown.
        seeds: whether the same seed gives the same draw, and another seed another.
        densities: which log-probabilities a draw comes with: of the model, or of the distribution drawn from.
        top_log_probs: how many of the next token's log-probabilities were given; 0 for none.
        stays: what works in these modes, and what does not.
        calls_per_second: of the probe, one call at a time.
        tokens_per_second: drawn by the probe, one draw at a time.
    """

    dialect: str
    model: str
    served_model: str | None
    root: str | None
    chat: bool
    label_scoring: ScoringMode
    text_scoring: ScoringMode
    trials: tuple[Trial, ...]
    tokenizer: str
    token_ids: bool
    context_length: int | None
    seeds: Seeds
    densities: Densities
    top_log_probs: int
    calls_per_second: float = field(default=0.0, compare=False)
    tokens_per_second: float = field(default=0.0, compare=False)

    @property
    def stays(self) -> tuple[str, ...]:
        """What the scoring modes mean for a run, one sentence each; empty where nothing is lost."""
        lines: list[str] = []
        if self.text_scoring == "accuracy":
            lines.append(
                "Texts cannot be scored: hidden texts are weighed by the answers that they lead to, and prompts of "
                "hidden layers cannot be ranked by their likelihood. One-layer networks over labels lose nothing by "
                "this. A server with prompt log-probabilities (vLLM, SGLang, `dln serve`) can do both."
            )
        if self.label_scoring == "top-k":
            lines.append(
                f"Labels are read off the {self.top_log_probs} likeliest tokens: a label that is not among them is "
                "censored at the smallest probability returned."
            )
        if self.label_scoring == "Monte-Carlo":
            lines.append("Labels are counted among draws: their probabilities are as coarse as the draws are few.")
        if self.label_scoring == "accuracy":
            lines.append("Labels are read off one answer: prompts are ranked by accuracy and nothing finer.")
        if self.seeds == "ignored":
            lines.append("The server ignores seeds: a draw can be repeated from the cache only.")
        if self.densities in ("unknown", "none"):
            lines.append("Draws come without their density: log q of a hidden text is known at temperature 0 only.")
        return tuple(lines)

    def to_dict(self) -> dict[str, Any]:
        """Plain values by name, for JSON."""
        return {**asdict(self), "trials": [asdict(trial) for trial in self.trials], "stays": list(self.stays)}

    def __str__(self) -> str:
        length = "unknown" if self.context_length is None else f"{self.context_length} tokens"
        served = "" if self.served_model in (None, self.model) else f", answers as {self.served_model}"
        texts = "nothing" if self.text_scoring == "accuracy" else self.text_scoring
        lines = [
            f"{self.dialect}/{self.model}{served}, {'chat' if self.chat else 'completion'}",
            f"  labels by: {self.label_scoring}   texts by: {texts}",
            *(f"    {t.purpose}, {t.mode}: {'yes' if t.works else 'no'} ({t.reason})" for t in self.trials),
            f"  tokenizer: {self.tokenizer}",
            f"  context length: {length}   seeds: {self.seeds}",
            f"  speed: {self.calls_per_second:.1f} calls/s, {self.tokens_per_second:.0f} tokens/s, one at a time",
            *(f"  {line}" for line in self.stays),
        ]
        return "\n".join(lines)
