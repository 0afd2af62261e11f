"""Train the two prompts of an ordinary Python function by a metric on its output alone.

The fault lies in the first step. Functions stand in the place of models; with a real one: lm="openai/gpt-4o-mini".
"""

from __future__ import annotations

from collections.abc import Mapping

import dln


def program(example: dln.Example, prompts: Mapping[str, str], trace: dln.Trace) -> str:
    words = example.input.split()
    found = trace("find", lambda: words[-1] if "place" in prompts["find"] else words[0], reads=example.input)
    return trace("write", lambda: found.upper() if "upper" in prompts["write"] else found)


def propose(context: str) -> dict[str, float]:
    if "Better instruction" in context:
        evident = "should have written: Rome" in context or "should have written: Oslo" in context
        return {"Find the place.": 0.9, "Find a name.": 0.1} if evident else {"Find it.": 0.5, "Be brief.": 0.5}
    return {"Rome": 0.4, "Oslo": 0.4, "Ann": 0.2}


def main() -> None:
    people, places = ["Ann", "Bob", "Cem", "Dee"], ["Rome", "Oslo"]
    train = dln.Dataset.from_pairs([(f"{who} went to {place}", place.upper()) for who in people for place in places])
    prompts = {"find": "Find the person.", "write": "Write it in upper case."}
    lm = dln.TableLM(propose, name="proposals")
    result = dln.optimize(program, prompts, train, metric="exact", lm=lm, batch_size=6)
    print(result)
    for name, text in result.parameters.items():
        print(f"{name}: {text}")


if __name__ == "__main__":
    main()
