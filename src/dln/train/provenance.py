"""What a run is made of: options, layout, data, model and versions, for run.yaml."""

from __future__ import annotations

import hashlib
import platform
from collections.abc import Mapping
from importlib import metadata
from typing import Any

from dln.data import Dataset, NamedMetric
from dln.nn import Sequential
from dln.nn.saving import network_to_json
from dln.train.options import Options

__all__ = ["provenance"]


def provenance(
    network: Sequential,
    train: Dataset,
    dev: Dataset | None,
    options: Options,
    metric: NamedMetric,
    task: str,
    config: Mapping[str, Any] | None,
) -> dict[str, Any]:
    """The content of run.yaml; a resumed run must have the same options, data, network and models."""
    content = "".join(d.content_hash() for d in (train, dev) if d is not None)
    return {
        "schema": 1,
        "task": task or train.name,
        "config": dict(config or {}),
        "metric": metric.name,
        "options": options.model_dump(mode="json"),
        "network": network_to_json(network),
        "models": {layer.lm.name: layer.lm.fingerprint() for layer in network.layers},
        "data_hash": hashlib.sha256(content.encode()).hexdigest(),
        "versions": _versions(),
    }


def _versions() -> dict[str, str]:
    versions = {"python": platform.python_version()}
    for package in ("dln", "numpy", "scipy", "torch", "transformers"):
        try:
            versions[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            versions[package] = "not installed"
    return versions
