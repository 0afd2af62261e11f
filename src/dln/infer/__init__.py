"""Variational inference over hidden texts and prompts; the training step is `dln.infer.vi.update`."""

from dln.infer.vi import Batch, Info, State, VariationalInference, build, init, update

__all__ = ["Batch", "Info", "State", "VariationalInference", "build", "init", "update"]
