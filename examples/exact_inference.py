"""The bound, with a model small enough to enumerate: ELBO ≤ log p(y|x), equal under the exact posterior.

ELBO(q) = E_q[log p(h|x) + log p(y|h,x)] + H[q] = log p(y|x) − KL(q ‖ p(h|x,y))
"""

from __future__ import annotations

import numpy as np

import dln
from dln.nn import LayerInput
from dln.numerics import entropy, logsumexp, softmax

THOUGHTS = (" it is praise", " it is blame", " it is a fact")


def main() -> None:
    thinker = dln.LanguageLayer(dln.TableLM.random(THOUGHTS, seed=1), "think", "Think about the text.")
    judge = dln.ChoiceLayer(
        dln.TableLM.random([" yes", " no"], seed=2), "classify_residual", "Is it positive?", ["yes", "no"]
    )
    x, y = "a thriller without thrills", "no"

    # α_k = log p(h_k|x) and β_k = log p(y|h_k,x), for every text that the first layer can write
    hidden = [h.strip() for h in THOUGHTS]
    alpha = np.array([score.log_prob for score in thinker.log_prob([LayerInput(x, x)] * 3, hidden)])
    beta = np.array([score.log_prob for score in judge.log_prob([LayerInput(x, h) for h in hidden], [y] * 3)])
    log_likelihood = float(logsumexp(alpha + beta))
    print(f"log p(y|x) by enumeration     {log_likelihood:.6f}")

    def elbo(q: np.ndarray) -> float:
        return float(q @ (alpha + beta)) + entropy(q)

    beliefs = {"posterior, w ∝ exp(α + β)": alpha + beta, "prior, w ∝ exp(α)": alpha, "uniform": np.zeros(3)}
    for name, log_weights in beliefs.items():
        bound = elbo(softmax(log_weights))
        print(f"ELBO, q = {name:28s}{bound:.6f}   gap {log_likelihood - bound:.6f}")
        assert bound <= log_likelihood + 1e-12
    assert abs(elbo(softmax(alpha + beta)) - log_likelihood) < 1e-12


if __name__ == "__main__":
    main()
