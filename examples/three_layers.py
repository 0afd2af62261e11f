"""Three layers trained at once: two write text, the third chooses a label. No real model is needed.

`TableLM.random` gives every context, so every prompt, a fixed distribution of its own: some prompts are
better than others by luck alone, and training has to find them. With a real model only `lm` changes.
"""

from __future__ import annotations

import dln
from dln.train.events import Event, StepDone


def show(event: Event) -> None:
    if isinstance(event, StepDone):
        winners = [layer.candidates[layer.winner].source for layer in event.layers]
        print(f"step {event.step}  ELBO {event.elbo:.3f}  accuracy {event.accuracy:.2f}  winners {', '.join(winners)}")


def main() -> None:
    writer = dln.TableLM.random([" warm words", " cold words", " a plain report"], seed=5)
    chooser = dln.TableLM.random([" yes", " no"], seed=6)
    network = dln.Sequential(
        dln.LanguageLayer(writer, "think", "What stands out?"),
        dln.LanguageLayer(writer, "think_residual", "What follows from that?"),
        dln.ChoiceLayer(chooser, "classify_residual", "Is it positive?", ["yes", "no"]),
    )
    pairs = [(f"film number {n}", "yes" if n % 2 else "no") for n in range(40)]
    train = dln.Dataset.from_pairs(pairs, labels=["yes", "no"])

    result = dln.fit(network, train, steps=8, options={"batch_size": 8}, callbacks=[show])
    for number, prompt in enumerate(result.network.parameters(), 1):
        print(f"layer {number}: {prompt}")


if __name__ == "__main__":
    main()
