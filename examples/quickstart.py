"""Train one layer on the bundled task with the embedded model, then test it against where it began.

The sizes are small, so that it takes a minute or two on two cores; larger ones do better.
"""

from __future__ import annotations

import dln


def main() -> None:
    lm = dln.load_lm("smollm2")
    task = dln.load_task("questions")
    network = dln.Sequential(dln.ChoiceLayer(lm, prompt=task.instruction, labels=task.labels or ()))

    result = dln.fit(
        network,
        task.train,
        task.dev[:32],
        steps=2,
        seed=13,
        options={"batch_size": 16, "val_every": 1, "inference": {"num_prompts": 4, "demonstrations": [12]}},
        callbacks=[lambda event: print(f"  {event.kind}")],
    )
    before = dln.evaluate(network, task.test[:32])
    after = dln.evaluate(result.network, task.test[:32])
    paired, _ = dln.compare(before, after)
    print("before:", before)
    print("after: ", after)
    print("p-value of the difference:", None if paired is None else f"{paired.p_value:.2g}")
    print(result.network.predict("How many legs does a spider have?"))
    print("the prompt:", result.network.parameters()[0], sep="\n")


if __name__ == "__main__":
    main()
