"""A new way to propose prompts is one class with one method; nothing else has to change."""

from __future__ import annotations

from dataclasses import dataclass

import dln
from dln.infer import vi
from dln.infer.memory import Feedback
from dln.infer.prompts import MixturePrompts, Proposal, RewriteProposal
from dln.nn import AnyLayer
from dln.random import Key


@dataclass(frozen=True)
class AddAHint:
    """The present instruction with one of some hints behind it."""

    hints: tuple[str, ...] = ("Look at the verbs.", "Mind the negations.", "Ignore the names.")

    def __call__(self, key: Key, layer: AnyLayer, feedback: Feedback, num: int) -> list[Proposal]:
        """Up to `num` candidates; all randomness comes from `key`."""
        order = key.child("hint").generator().permutation(len(self.hints))[:num]
        present = layer.prompt
        return [
            Proposal(present.with_instruction(f"{present.instruction} {self.hints[int(i)]}"), "hint") for i in order
        ]


def main() -> None:
    lm = dln.TableLM.random([" yes", " no"], seed=8)
    network = dln.Sequential(dln.ChoiceLayer(lm, "classify", "Is the review positive?", ["yes", "no"]))
    algorithm = vi.build(num_prompts=6, q_prompt=MixturePrompts((AddAHint(), RewriteProposal())))
    batch = vi.Batch(("a joy", "a bore", "not bad", "no fun"), ("yes", "no", "yes", "no"))
    _, info = vi.update(vi.init(network), batch, Key(1), algorithm)
    for number, proposal in enumerate(info.layers[0].proposals):
        mark = "*" if number == info.layers[0].winner else " "
        print(f"{mark} {info.layers[0].scores[number]:8.4f}  {proposal.source:10s} {proposal.prompt}")


if __name__ == "__main__":
    main()
