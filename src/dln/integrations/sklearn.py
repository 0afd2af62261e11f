"""`DLNClassifier`: a network of prompts as a scikit-learn classifier of texts.

The estimator follows the contract of scikit-learn 1.6 and later: constructor arguments are stored unchanged and checked
by `fit`, and everything learnt ends in an underscore. A pickle holds settings, prompts and output layers as plain data,
and the name of the model in place of its weights; the model is loaded again when the copy first predicts.
"""

from __future__ import annotations

import copy
import math
import numbers
import warnings
from collections.abc import Mapping, Sequence
from importlib import import_module
from pathlib import Path
from typing import Any, Self, cast

import numpy as np
import numpy.typing as npt
from sklearn.base import BaseEstimator, ClassifierMixin

from dln.arguments import Count, Size, checked
from dln.data import Dataset, Task, split
from dln.data.dataset import text_key
from dln.data.labels import canonical_label
from dln.data.tasks import default_instruction
from dln.errors import InputError
from dln.lm.base import LanguageModel
from dln.lm.load import as_lm, load_lm
from dln.nn.ensemble import AnyNetwork
from dln.nn.saving import network_from_json, network_to_json
from dln.numerics import Floats
from dln.train import FitResult, fit, resolve_options
from dln.train.layout import standard_network
from dln.train.options import keyword_options, nested

__all__ = ["DLNClassifier"]

SECRETS = ("api_key", "headers")
"""Options of a model that no pickle holds; the process that loads the model takes them from its environment."""

_CHUNK = 200
"""Inputs per request of a prediction."""

_utils: Any = import_module("sklearn.utils")
_multiclass: Any = import_module("sklearn.utils.multiclass")
_validation: Any = import_module("sklearn.utils.validation")


class DLNClassifier(ClassifierMixin, BaseEstimator):
    """Classifier of texts by a language model whose prompts are trained.

    Args:
        lm: the language model, or its name (see `dln.load_lm`).
        lm_options: options of `dln.load_lm` for a named model, such as `{"base_url": "http://localhost:8000/v1"}`.
        preset: named training options, "default" or "paper".
        steps: number of training steps; None for the preset's. With 0 only the output layer is fitted.
        instruction: the initial prompt of the output layer; None for a sentence that names the labels.
        labels: maps classes to the words that the model reads for them, `{0: "negative", 1: "positive|good"}`: the
            first spelling names the label, further ones add their probability. None for the classes as texts.
        layers: number of layers; with two, the first one writes a hidden text.
        dev_size: examples held out to select prompts by, as a number or as a fraction of all.
        random_state: seed of the held-out examples and of training; None is the preset's fixed seed.
        run_dir: directory for events, checkpoints and the result; None keeps nothing. Each `fit` needs its own.
        progress: whether to show a progress bar; None for a terminal or notebook only.
        options: further training options, flat (`{"batch_size": 8, "num_prompts": 4}`) or nested as in `dln.fit`.

    Attributes:
        classes_: [C] the classes, sorted, of the type of y.
        class_prior_: [C] their frequencies in y.
        n_features_in_: number of columns; not set for a list or array of texts.
        feature_names_in_: names of the columns, if all are texts.
        prompts_: the trained prompts of all layers.
        dev_score_: validation score of the network; NaN without held-out examples.
        history_: one record per step (`dln.History`).

    Example:
        >>> from dln.lm.table import TableLM
        >>> model = TableLM.random([" ham", " spam"], seed=0)
        >>> classifier = DLNClassifier(model, steps=0).fit(["a", "b", "c", "d"] * 2, ["ham", "spam"] * 4)
        >>> classifier.predict_proba(["a"]).shape
        (1, 2)
    """

    classes_: npt.NDArray[Any]
    class_prior_: Floats
    prompts_: tuple[str, ...]
    dev_score_: float
    history_: Any

    def __init__(
        self,
        lm: LanguageModel | str = "smollm2",
        *,
        lm_options: Mapping[str, Any] | None = None,
        preset: str = "default",
        steps: int | None = None,
        instruction: str | None = None,
        labels: Mapping[Any, str] | None = None,
        layers: int = 1,
        dev_size: float = 0.25,
        random_state: Any = None,
        run_dir: str | Path | None = None,
        progress: bool | None = None,
        options: Mapping[str, Any] | None = None,
    ) -> None:
        self.lm = lm
        self.lm_options = lm_options
        self.preset = preset
        self.steps = steps
        self.instruction = instruction
        self.labels = labels
        self.layers = layers
        self.dev_size = dev_size
        self.random_state = random_state
        self.run_dir = run_dir
        self.progress = progress
        self.options = options

    def fit(self, X: Any, y: Any) -> Self:  # noqa: N803
        """Train the prompts.

        Args:
            X: a list, array or Series of texts, or a table (a DataFrame or a 2-D array): a row with several columns
                becomes a text with one line "name: value" per column, without its missing values.
            y: [N] classes: texts, integers or truth values.

        Raises:
            InputError: a parameter, X or y cannot be used.
        """
        if y is None:
            raise InputError("requires y to be passed, but the target y is None", where=type(self).__name__)
        texts = row_texts(X)
        _validation.validate_data(self, X, reset=True, skip_check_array=True)
        target: npt.NDArray[Any] = np.asarray(_utils.column_or_1d(y, warn=True))
        _utils.assert_all_finite(target, input_name="y")
        _multiclass.check_classification_targets(target)
        if len(target) != len(texts):
            raise InputError("X and y differ in length", where="X, y", got=f"{len(texts)} and {len(target)} rows")
        classes: npt.NDArray[Any]
        index: npt.NDArray[np.int64]
        classes, index = np.unique(target, return_inverse=True)
        if len(classes) < 2:
            raise InputError("a classifier needs two classes or more", where="y", got=f"{len(classes)} class")
        specs = label_words(classes.tolist(), self.labels)
        names = [canonical_label(spec) for spec in specs]
        pairs = [(text, names[int(i)]) for text, i in zip(texts, index, strict=True)]
        seed = _seed(self.random_state)
        result = train_texts(
            self._model(),
            Dataset.from_pairs(pairs, specs, name=type(self).__name__),
            labels=specs,
            preset=self.preset,
            steps=self.steps,
            instruction=self.instruction,
            layers=self.layers,
            dev_size=self.dev_size,
            seed=seed,
            run_dir=self.run_dir,
            progress=self.progress,
            options=self.options or {},
        )
        self.classes_ = classes
        self.class_prior_ = np.bincount(index, minlength=len(classes)) / len(index)
        self.prompts_ = tuple(str(prompt) for prompt in result.network.parameters())
        self.dev_score_, self.history_ = result.score, result.history
        self._saved = network_to_json(result.predictor)
        self._network: AnyNetwork | None = result.predictor
        return self

    def predict(self, X: Any) -> npt.NDArray[Any]:  # noqa: N803
        """[N] the most probable classes."""
        best = self.predict_proba(X).argmax(axis=1)
        return self.classes_[best]

    def predict_proba(self, X: Any) -> Floats:  # noqa: N803
        """[N, C] probabilities of `classes_`.

        A text for which the model returns no finite score gets the frequencies of the classes, with a warning.
        """
        _validation.check_is_fitted(self)
        # columns without names are called as they were in `fit`
        texts, network = row_texts(X, getattr(self, "feature_names_in_", None)), self.network_
        _validation.validate_data(self, X, reset=False, skip_check_array=True)
        names = network.labels or ()
        rows: list[list[float]] = []
        unscored = 0
        for start in range(0, len(texts), _CHUNK):
            for prediction in network.predict_many(texts[start : start + _CHUNK]):
                row = [prediction.probabilities.get(name, 0.0) for name in names] if prediction.scored else []
                unscored += not sum(row)
                rows.append(row if sum(row) else self.class_prior_.tolist())
        if unscored:
            warnings.warn(
                f"{unscored} of {len(texts)} texts could not be scored: their probabilities are the class frequencies",
                stacklevel=2,
            )
        found = np.array(rows, dtype=np.float64).reshape(len(rows), len(self.classes_))
        return found / found.sum(axis=1, keepdims=True)

    def predict_log_proba(self, X: Any) -> Floats:  # noqa: N803
        """[N, C] logarithms of `predict_proba`, in nats."""
        with np.errstate(divide="ignore"):
            return np.log(self.predict_proba(X))

    @property
    def network_(self) -> AnyNetwork:
        """The trained network or ensemble; a copy of the estimator in another process loads its model here."""
        _validation.check_is_fitted(self)
        if self._network is None:
            self._network = network_from_json(self._saved, self._model())
        return self._network

    def __sklearn_tags__(self) -> Any:
        tags = cast(Any, super()).__sklearn_tags__()
        given = tags.input_tags
        # one_d_array stays unset although a list of texts has one dimension: check_estimator would pass bare numbers
        given.two_d_array = given.string = given.categorical = given.allow_nan = True
        return tags

    def __sklearn_clone__(self) -> Self:
        parameters = cast("dict[str, Any]", self.get_params(deep=False))
        model = parameters.pop("lm")  # a resource: copies share it
        return type(self)(model, **copy.deepcopy(parameters))

    def __deepcopy__(self, memo: dict[int, object]) -> Self:
        other = type(self).__new__(type(self))
        shared = ("lm", "_network")
        vars(other).update({k: v if k in shared else copy.deepcopy(v, memo) for k, v in vars(self).items()})
        return other

    def __getstate__(self) -> dict[str, Any]:
        state = dict(cast("dict[str, Any]", super().__getstate__()))
        if "_network" in state:
            state["_network"] = None
        if not isinstance(self.lm, str):
            state["lm"] = self.lm.name
        if self.lm_options is not None:
            state["lm_options"] = {name: value for name, value in self.lm_options.items() if name not in SECRETS}
        return state

    def _model(self) -> LanguageModel:
        return load_lm(self.lm, **(self.lm_options or {})) if isinstance(self.lm, str) else as_lm(self.lm)


def row_texts(X: Any, names: Sequence[str] | None = None) -> list[str]:  # noqa: N803
    """Convert the rows of X to texts.

    Args:
        X: see `DLNClassifier.fit`.
        names: of the columns of an array without names.

    Raises:
        InputError: X is one text, is sparse or complex, or has a cell that is neither a text nor a number.
    """
    if isinstance(X, str) or hasattr(X, "toarray"):
        got = "one text" if isinstance(X, str) else "a sparse matrix"
        raise InputError(
            "X must be texts or a dense table; sparse input is not supported", where="X", got=got, fix="X=[text, …]"
        )
    columns: Sequence[object] | None = getattr(X, "columns", None)
    if columns is not None:
        # as in scikit-learn, columns have names if all of them are texts
        named = all(isinstance(name, str) for name in columns)
        names = [str(name) if named else f"x{i}" for i, name in enumerate(columns)]
        cells = list(zip(*(list(X[name]) for name in columns), strict=True))
    else:
        # a list is taken cell by cell: numpy would turn the numbers of a mixed list into texts
        array = np.asarray(X) if hasattr(X, "dtype") or not isinstance(X, Sequence) else np.array(X, dtype=object)
        if np.iscomplexobj(array):
            raise InputError("Complex data not supported", where="X")
        if array.ndim not in (1, 2):
            raise InputError("X must be texts or a table", where="X", got=f"an array of {array.ndim} dimensions")
        if array.ndim == 1 and len(array) and isinstance(array[0], numbers.Number):
            raise InputError(
                "Expected 2D array, got 1D array instead: a 1-D X holds texts",
                where="X",
                got=f"numbers such as {array[0]}",
                fix="Reshape your data: X.reshape(-1, 1) for one feature, X.reshape(1, -1) for one sample",
            )
        if array.ndim == 2 and 0 in array.shape:
            raise InputError(
                f"Found array with {array.shape[1]} feature(s) (shape={array.shape}) while a minimum of 1 is required.",
                where="X",
            )
        cells = cast("list[tuple[object, ...]]", list(array) if array.ndim == 2 else [(cell,) for cell in array])
        names = names if names is not None else [f"x{i}" for i in range(array.shape[1] if array.ndim == 2 else 1)]
    if not cells:
        raise InputError("there are no rows", where="X", got="0 sample(s)", expected="one row or more")
    return [_row_text(row, names, i) for i, row in enumerate(cells)]


def _row_text(row: Sequence[object], names: Sequence[str], position: int) -> str:
    values = [_cell_text(value, f"X, row {position}") for value in row]
    if len(values) == 1 and values[0] is not None:
        return values[0]
    lines = [f"{name}: {value}" for name, value in zip(names, values, strict=True) if value is not None]
    if not lines:
        raise InputError("a row has no value", where=f"X, row {position}", got=repr(row[0]), fix="leave the row out")
    return "\n".join(lines)


def _cell_text(value: object, where: str) -> str | None:
    """A cell as a text, None if it is missing; numbers have six digits."""
    if isinstance(value, str):
        return str(value)
    if value is None or type(value).__name__ in ("NAType", "NaTType"):
        return None
    if isinstance(value, bool | np.bool_):
        return "true" if value else "false"
    if isinstance(value, numbers.Integral):
        return str(int(value))
    if isinstance(value, numbers.Real):
        return None if math.isnan(value) else f"{float(value):.6g}"
    # scikit-learn asks for these words where an object cannot be converted
    raise InputError(
        "argument must be a string or a number", where=where, got=type(value).__name__, expected="a text or a number"
    )


def label_words(classes: Sequence[Any], labels: Mapping[Any, str] | None) -> tuple[str, ...]:
    """Return one label specification per class (see `dln.data.labels`).

    Raises:
        InputError: a class has no word, or its text contains "|", which separates spellings.
    """
    if labels is not None:
        missing = [one for one in classes if one not in labels]
        if missing:
            raise InputError(
                "a class has no label",
                where="DLNClassifier, argument 'labels'",
                got=missing[:10],
                expected="a mapping with every class of y",
                fix=f"labels={{{missing[0]!r}: 'a word', …}}",
            )
        return tuple(labels[one] for one in classes)
    words = [(_cell_text(one, "y") or "").strip() for one in classes]
    unclear = [
        one for one, word in zip(classes, words, strict=True) if not word or "|" in word or words.count(word) > 1
    ]
    if unclear:
        raise InputError(
            "the text of a class cannot be a label",
            where="y",
            got=unclear[:10],
            expected="distinct texts, not empty and without '|', which separates spellings",
            fix=f"labels={{{unclear[0]!r}: 'a word', …}}",
        )
    return tuple(words)


def _seed(random_state: Any) -> int | None:
    """The seed of a `random_state`: an integer as it is, a generator's next number, None for the preset's."""
    if random_state is None or isinstance(random_state, numbers.Integral):
        return None if random_state is None else int(random_state)
    return int(_utils.check_random_state(random_state).randint(2**31 - 1))


@checked
def train_texts(
    lm: LanguageModel,
    data: Dataset,
    *,
    labels: Sequence[str],
    preset: str,
    steps: Size | None,
    instruction: str | None,
    layers: Count,
    dev_size: float,
    seed: Size | None,
    run_dir: str | Path | None,
    progress: bool | None,
    options: Mapping[str, Any],
) -> FitResult:
    """Train the standard network on `data`, of which `dev_size` is held out to select by.

    Without enough distinct texts for two parts, nothing is held out and the last network is returned.

    Raises:
        InputError: a setting cannot be used.
    """
    given = keyword_options(nested(options), ())
    named = {name: value for name, value in (("steps", steps), ("seed", seed)) if value is not None}
    resolved = resolve_options(preset, given, named)
    distinct = len({text_key(x) for x in data.inputs})
    held_out = dev_size if dev_size >= 1 else round(dev_size * distinct)
    if not 0 < dev_size < distinct or (dev_size >= 1 and dev_size != int(dev_size)):
        raise InputError(
            "the argument 'dev_size' cannot be used",
            where="DLNClassifier",
            got=dev_size,
            expected=f"a fraction between 0 and 1, or a number of examples below {distinct}",
            fix="dev_size=0.25",
        )
    train, dev = data, None
    if 0 < held_out < distinct:
        dev, train = split(data, (int(held_out), distinct - int(held_out)), resolved.seed)
    text = default_instruction(data.labels) if instruction is None else instruction
    task = Task(data.name, text, tuple(labels), train, dev or train, dev or train, "exact_match")
    return fit(
        standard_network(task, lm, layers, preset=preset),
        train,
        dev,
        options=resolved,
        run_dir=run_dir,
        progress=progress,
        task=data.name,
    )
