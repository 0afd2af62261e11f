"""Networks that commands are given: a network file or a run directory, with the models they name."""

from __future__ import annotations

from contextlib import ExitStack
from functools import cache
from pathlib import Path
from typing import Any, cast

from dln.cli.compose import build_models
from dln.cli.config import RunConfig
from dln.cli.model_config import engine_of
from dln.errors import InputError
from dln.lm.base import LanguageModel
from dln.nn import Sequential, load_network
from dln.nn.ensemble import AnyNetwork, Ensemble, best_of
from dln.nn.saving import network_from_json
from dln.train.run import read_meta

__all__ = ["Loader", "said_together"]


class Loader:
    """Opens networks; their models share one cache and are loaded once each.

    Args:
        config: of the cache and the engine.
        override: the model to use whatever the file names.
        stack: closes the cache.
    """

    def __init__(self, config: RunConfig, override: str | None, stack: ExitStack) -> None:
        self._config = config
        self._override = override
        self._stack = stack
        self._load = cache(self._load_model)

    def trained(self, place: Path) -> AnyNetwork:
        """What answers: of a file, or the result of a run; one network, or several together.

        Raises:
            InputError: there is none.
        """
        if place.is_dir():
            file = place / "network.json"
            if not file.exists():
                raise InputError(
                    "there is no trained network here (yet)",
                    where=place,
                    fix=f"dln resume {place}" if (place / "run.yaml").exists() else "a run directory or network file",
                )
            return load_network(file, self._load)
        return load_network(place, self._load)

    def initial(self, run: Path) -> Sequential:
        """The network that a run began with."""
        recorded = cast(dict[str, Any], read_meta(run)["network"])
        return best_of(network_from_json(recorded, self._load, str(run / "run.yaml")))

    def _load_model(self, name: str) -> LanguageModel:
        given, spec = self._config.lm, self._override or name
        changes: dict[str, Any] = {"spec": spec, "prompt_lm": None, "hidden_lm": None}
        if engine_of(spec) != engine_of(given.spec) and "spec" in given.model_fields_set:
            # the server that is known is that of another engine: its address and key are not for this model
            changes |= {"base_url": (), "api_key": None, "api_key_env": None, "options": {}}
        lm = given.model_copy(update=changes)
        return build_models(self._config.model_copy(update={"lm": lm}), self._stack).lm


def said_together(network: AnyNetwork) -> str | None:
    """How many prompts answer together and with which weights, in a line; None where one answers."""
    if not isinstance(network, Ensemble):
        return None
    weights = ", ".join(f"{weight:.3f}" for weight in network.weights)
    return f"{len(network.members)} prompts answer together, with weights {weights}"
