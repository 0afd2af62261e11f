"""A network as a file: prompts, layout and provenance, pure data with a schema version and a hash.

One network is `{"schema": 1, "layers": […], …}`. Several that answer together are
`{"schema": 2, "members": [{"weight": w, "layers": […]}, …], …}`: a program that knows schema 1 alone says so,
and does not take one of them for all.

The file names its model but holds no endpoint, no key and no code; templates travel inside it.
"""

from __future__ import annotations

import hashlib
import json
import os
import shlex
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from dln.arguments import checked, did_you_mean, shown
from dln.errors import CorruptDataError, InputError
from dln.io import parse, write_atomically
from dln.lm.base import LanguageModel
from dln.lm.load import as_lm, load_lm
from dln.nn.ensemble import AnyNetwork, Ensemble
from dln.nn.layers import ChoiceLayer, LanguageLayer, Layer, Load, by_name
from dln.nn.parallel import FunctionLayer, Parallel
from dln.nn.sequential import Sequential

__all__ = [
    "SCHEMA",
    "TOGETHER",
    "OtherModelWarning",
    "load_network",
    "load_state_dict",
    "network_from_json",
    "network_to_json",
    "resign_network",
    "save_network",
]

SCHEMA, TOGETHER = 1, 2
"""Of a file with one network, and of one with several that answer together."""


class OtherModelWarning(UserWarning):
    """A network is loaded with a model whose fingerprint differs from that of the model it was trained with."""


@checked
def save_network(network: AnyNetwork, path: str | Path, provenance: Mapping[str, object] | None = None) -> None:
    """Write `network` to `path` (JSON), atomically.

    Args:
        network: what to save, one network or several that answer together.
        path: the file; it is replaced as a whole or not at all.
        provenance: where the prompts come from (task, run, metrics), kept beside them.

    Raises:
        InputError: the file cannot be written.
    """
    body = network_to_json(network) | {"provenance": dict(provenance or {})}
    try:
        json.dumps(body)
    except (TypeError, ValueError) as error:
        raise InputError(
            "the argument 'provenance' cannot be written as JSON",
            where="save_network",
            got=str(error),
            expected="texts, numbers, lists and dicts of them",
            fix='provenance={"task": "subj"}',
        ) from error
    schema = TOGETHER if isinstance(network, Ensemble) else SCHEMA
    document = {"schema": schema, "sha256": _digest(body), **body}
    target = Path(path)
    draft = target.with_name(f".{target.name}.{os.getpid()}.tmp")
    try:
        draft.write_text(json.dumps(document, ensure_ascii=False, indent=2) + "\n", encoding="utf-8")
        draft.replace(target)
    except OSError as error:
        raise InputError(
            "the network file cannot be written",
            where=target,
            got=error.strerror,
            expected="the path of a file in a directory that exists",
            fix=f"mkdir -p {target.parent}" if not target.parent.exists() else "another path",
        ) from error


@checked
def load_network(
    path: str | Path, lm: LanguageModel | str | Callable[[str], LanguageModel] | None = None
) -> AnyNetwork:
    """Read a network: a `Sequential`, or the `Ensemble` that was saved.

    Args:
        path: a file that `save_network` wrote, or the directory of a run, for the network that it trained.
        lm: the model for all layers, or its name, or a function from the model's name in the file to a model. Default
            `dln.load_lm`: the models that the file names, each loaded once.

    Raises:
        InputError: the file is missing, or not a network file, or no model has the name that it gives.
        CorruptDataError: its content does not match its hash.
    """
    source = _network_file(Path(path))
    body, digest = _read(source)
    if digest != _digest(body):
        raise CorruptDataError(
            "the network file does not match its hash: it was changed by hand or damaged",
            where=source,
            got="no hash" if digest is None else "another hash",
            expected="a file as it was saved",
            fix=f"dln show {shlex.quote(str(source))} --resign checks a file that was edited and writes its hash",
        )
    load = load_lm if lm is None else as_lm(lm) if isinstance(lm, str) else lm
    network = network_from_json(body, load, str(source))
    _compare_models(body, network, source)
    return network


@checked
def resign_network(path: str | Path, lm: LanguageModel | Callable[[str], LanguageModel]) -> AnyNetwork:
    """Check a network file that was edited by hand, and write its hash.

    Args:
        path: a network file, or the directory of a run.
        lm: the model of all layers, or a function from the model's name in the file to a model; it is not called.

    Raises:
        InputError: the file is not a network, names the field that is wrong, or cannot be written.
    """
    source = _network_file(Path(path))
    body, _ = _read(source)
    network = network_from_json(body, lm, str(source))
    schema = TOGETHER if "members" in body else SCHEMA
    document = {"schema": schema, "sha256": _digest(body), **body}
    try:
        write_atomically(source, json.dumps(document, ensure_ascii=False, indent=2) + "\n")
    except OSError as error:
        raise InputError(
            "the network file cannot be written", where=source, got=error.strerror, fix="copy it to another folder"
        ) from error
    return network


def _compare_models(body: Mapping[str, object], network: AnyNetwork, source: Path) -> None:
    """Warn if a model is another one than the network was trained with."""
    members = network.members if isinstance(network, Ensemble) else (network,)
    present = {lm.fingerprint() for member in members for layer in member for lm in layer.models}
    recorded = dict(_fingerprints(body))
    changed = [(name, mark) for mark, name in recorded.items() if mark not in present]
    if changed and present:
        name, mark = changed[0]
        warnings.warn(
            f"{source}: trained with the model {name} ({mark}), loaded with {', '.join(sorted(present))}: "
            "scores and calibration may not hold",
            OtherModelWarning,
            stacklevel=4,
        )


def _fingerprints(value: object) -> Iterator[tuple[str, str]]:
    """The fingerprint and name of every model that a file records."""
    if isinstance(value, Mapping):
        fields = cast("Mapping[str, object]", value)
        if isinstance(fields.get("fingerprint"), str) and isinstance(fields.get("model"), str):
            yield str(fields["fingerprint"]), str(fields["model"])
        value = list(fields.values())
    if isinstance(value, list):
        for inner in cast("list[object]", value):
            yield from _fingerprints(inner)


def _read(source: Path) -> tuple[dict[str, object], object]:
    """The content of a network file, and the hash that it gives."""
    try:
        document: object = json.loads(source.read_text(encoding="utf-8"))
    except OSError as error:
        raise InputError(
            "the network file cannot be read",
            where=source,
            got=error.strerror,
            expected="a file that dln.save_network or `dln train` wrote, or the directory of a run",
            fix="check the path",
        ) from error
    except ValueError as error:
        raise CorruptDataError("the network file is not JSON", where=source, got=str(error)) from error
    keys = list(cast("dict[str, object]", document)) if isinstance(document, dict) else []
    if not isinstance(document, dict) or not {"layers", "members"} & set(keys):
        raise InputError(
            "this is not a network file",
            where=source,
            got=f"a JSON file with {', '.join(map(shown, keys[:5])) or 'nothing'}"
            if isinstance(document, dict)
            else f"JSON, but {shown(document, 40)}",
            expected="a file that dln.save_network or `dln train` wrote",
            fix="network.json in the directory of a run",
        )
    body = cast(dict[str, object], document)
    schema, digest = body.pop("schema", None), body.pop("sha256", None)
    known = TOGETHER if "members" in body else SCHEMA
    if schema != known:
        raise InputError(
            "this network file has another schema",
            where=source,
            got=schema,
            expected=known,
            fix="load it with the version of this program that wrote it",
        )
    return body, digest


def _network_file(place: Path) -> Path:
    """The file itself, or that of a run's directory."""
    if not place.is_dir():
        return place
    file = place / "network.json"
    if not file.exists():
        unfinished = (place / "run.yaml").exists()
        raise InputError(
            "there is no trained network in this directory",
            where=place,
            got="a run that has not ended" if unfinished else "no network.json",
            expected="a network file, or the directory of a run that has ended",
            fix=f"dln resume {place}" if unfinished else "check the path",
        )
    return file


@checked
def network_to_json(network: AnyNetwork) -> dict[str, object]:
    """The layout and parameters of a network, or of several and their weights, as plain data."""
    if isinstance(network, Ensemble):
        pairs = zip(network.weights, network.members, strict=True)
        bias = {} if network.bias is None else {"bias": network.bias.tolist()}
        return {"members": [{"weight": float(weight), **network_to_json(member)} for weight, member in pairs], **bias}
    return {"layers": [layer.to_json() for layer in network.layers]}


@checked
def network_from_json(
    data: Mapping[str, object], lm: LanguageModel | Callable[[str], LanguageModel], where: str = "network"
) -> AnyNetwork:
    """The inverse of `network_to_json`.

    Raises:
        InputError: naming `where` and the field that is wrong.
    """
    fields = ("layers", "members", "provenance", *(["bias"] if "members" in data else []))
    unknown = set(data) - set(fields)
    if unknown or ("members" in data) == ("layers" in data):
        close = did_you_mean(sorted(unknown)[0], fields) if unknown else None
        raise InputError(
            "these fields are not those of a network",
            where=where,
            got=", ".join(map(repr, data)) or "no field",
            expected="'layers', or 'members', and 'provenance' beside it",
            fix=f"did you mean {close!r}?" if close else "what network_to_json gives",
        )
    known: dict[str, LanguageModel] = {}

    def load(name: str) -> LanguageModel:
        if isinstance(lm, LanguageModel) or not callable(lm):  # an engine may lack some of the verbs
            return lm
        if name not in known:
            known[name] = lm(name)
        return known[name]

    if "members" in data:
        file = parse(EnsembleRecord, {name: data[name] for name in ("members", "bias") if name in data}, where)
        networks = [_network(m.layers, load, f"{where}: members.{i}") for i, m in enumerate(file.members)]
        try:
            return Ensemble(networks, [member.weight for member in file.members], file.bias)
        except InputError as error:
            place = f"{where}: {error.where}"
            raise InputError(error.message, where=place, got=error.got, expected=error.expected) from error
    return _network(parse(NetworkRecord, {"layers": data.get("layers")}, where).layers, load, where)


KINDS: dict[str, type[Layer]] = {"language": LanguageLayer, "choice": ChoiceLayer, "function": FunctionLayer}
"""The classes of layers by their names in files; other layers are named by `module:class`."""


def layer_from_json(data: Mapping[str, Any], load: Load, where: str) -> Layer:
    """A layer from what its `to_json` gave.

    Raises:
        InputError: naming `where` and the field that is wrong.
    """
    kind = str(data.get("kind"))
    if kind == "parallel":
        branches = parse(list[dict[str, Any]], data.get("branches"), f"{where}.branches")
        return Parallel(layer_from_json(one, load, f"{where}.branches.{b}") for b, one in enumerate(branches))
    found: object = KINDS.get(kind) or (by_name(kind, where) if ":" in kind else None)
    if not (isinstance(found, type) and issubclass(found, Layer)):
        raise InputError(
            f"there is no kind of layer {kind!r}",
            where=where,
            got=kind,
            expected=f"one of {', '.join(KINDS)}, parallel, or module:name of a subclass of dln.Layer",
            fix=f"did you mean {close!r}?" if (close := did_you_mean(kind, KINDS)) else "save the network again",
        )
    return found.from_json(data, load, where)


def _network(records: Sequence[Mapping[str, Any]], load: Load, where: str) -> Sequential:
    return Sequential(layer_from_json(record, load, f"{where}: layers.{i}") for i, record in enumerate(records))


@checked
def load_state_dict(network: Sequential, state: Mapping[str, object]) -> Sequential:
    """A network of the same layout with the parameters of `state` (see `Sequential.state_dict`).

    Raises:
        InputError: another number of layers, or a parameter that does not fit.
    """
    parameters = parse(StateRecord, dict(state), "state_dict").layers
    if len(parameters) != len(network):
        raise InputError(
            "the state has another number of layers",
            where="load_state_dict, argument 'state'",
            got=f"{len(parameters)} layers",
            expected=f"{len(network)} layers",
            fix="the state_dict of a network with the same layers",
        )
    pairs = zip(network.layers, parameters, strict=True)
    return Sequential(layer.with_state(values, f"state_dict: layers.{i}") for i, (layer, values) in enumerate(pairs))


@dataclass(frozen=True)
class NetworkRecord:
    """The layers of a network in a file."""

    layers: list[dict[str, Any]]


@dataclass(frozen=True)
class MemberRecord(NetworkRecord):
    """One of several networks in a file."""

    weight: float


@dataclass(frozen=True)
class EnsembleRecord:
    """Several networks that answer together in a file."""

    members: list[MemberRecord]
    bias: list[float] | None = None


@dataclass(frozen=True)
class StateRecord:
    """The parameters of a network in a state."""

    layers: list[dict[str, Any]]


def _digest(body: Mapping[str, object]) -> str:
    return hashlib.sha256(json.dumps(body, sort_keys=True, ensure_ascii=False).encode()).hexdigest()
