"""From a model or a network to what is served."""

from __future__ import annotations

from dln.errors import InputError
from dln.lm.base import LanguageModel
from dln.lm.token_level import TokenLevel
from dln.nn import Sequential
from dln.nn.ensemble import AnyNetwork, Ensemble
from dln.serve.answer import Served
from dln.serve.batcher import Batcher
from dln.serve.network_model import NetworkModel
from dln.serve.text_model import TextModel
from dln.serve.token_model import TokenModel

__all__ = ["served"]


def served(model: LanguageModel | AnyNetwork, name: str | None = None, *, batcher: Batcher | None = None) -> Served:
    """What answers requests for `model`.

    Args:
        model: a language model, with token ids where it has them, or a network (several that answer together are one).
        name: how clients call it; default the model's own name. A network needs one.
        batcher: its worker; default a new one.

    Raises:
        InputError: a network without a name.
    """
    worker = batcher or Batcher()
    if isinstance(model, Sequential | Ensemble):
        if not name:
            raise InputError("a served network needs a name", where="name")
        return NetworkModel(model, name, worker)
    if isinstance(model, TokenLevel):
        return TokenModel(model, model, name or model.name, worker)
    return TextModel(model, name or model.name, worker)
