"""Task: an instruction, labels, three disjoint datasets and a metric."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal, cast

from dln.answers import single_labels
from dln.arguments import Seed, checked
from dln.data.columns import Unusable, text_of
from dln.data.dataset import Dataset, columns_of, examples_of
from dln.data.labels import label_names
from dln.data.languages import ENGLISH, Language, language_of
from dln.data.metrics import Metric, load_metric, suggested_metric
from dln.data.resolve import Item, ReadReport, Resolved, resolve, text_key
from dln.data.spec import DataSpec
from dln.data.splits import PARTS, assign, by_time, content_order, thinned
from dln.data.tables import PART_NAMES, Table, cell_of, table_of_dicts, table_of_frame, table_of_hf
from dln.errors import InputError

__all__ = ["MOST", "Task", "default_instruction", "task_from_spec"]


@checked
@dataclass(frozen=True, slots=True)
class Task:
    """A task, with the data to train, select and test on.

    Attributes:
        name: short name for files and reports.
        instruction: the initial prompt of the output layer.
        labels: label specifications, canonical name first ("yes|Yes"); None for free-form targets. The targets of the
            datasets are the canonical names, `label_names`.
        train: examples to train on.
        dev: examples to select prompts on.
        test: examples for the final score only.
        metric: score of one prediction, 0 to 1; a name or a callable (see `dln.data.metrics`) becomes a `NamedMetric`.
        notes: notes on the data for readers of the results.
        input_name: name of an input, in one word ("sentence", "question").
        stages: instructions of the steps of the task in order, if known: each step reads only the output of the
            previous one, the last one gives the label. They are the initial prompts of a network of this depth.
        hidden_instruction: the initial prompt of hidden layers that generate a thought; None for the default.
        wording: field names of input and label in the language of the data; None for those of the template.
        output_layer: the option `inference.output_layer` that suits the labels: "ordinal" if they are in an order,
            lowest first, "sets" if each is a set of labels ("billing, refund"), else "words".
        spec: how the data was read, completed with what was guessed; None if it was not read from a file or frame.
        report: what was read, guessed, folded and dropped.
    """

    name: str
    instruction: str
    labels: tuple[str, ...] | None
    train: Dataset
    dev: Dataset
    test: Dataset
    metric: Metric | str
    notes: tuple[str, ...] = ()
    input_name: str = "input"
    stages: tuple[str, ...] = ()
    hidden_instruction: str | None = None
    wording: tuple[str, str] | None = None
    output_layer: Literal["words", "ordinal", "sets"] = "words"
    spec: DataSpec | None = field(default=None, repr=False, compare=False)
    report: ReadReport | None = field(default=None, repr=False, compare=False)

    def __post_init__(self) -> None:
        for name in ("notes", "stages"):
            object.__setattr__(self, name, tuple(getattr(self, name)))
        if self.labels is not None:
            object.__setattr__(self, "labels", tuple(self.labels))
        object.__setattr__(self, "metric", load_metric(self.metric, self.labels))
        names = self.label_names
        for part in ("train", "dev", "test"):
            dataset: Dataset = getattr(self, part)
            if len(dataset) == 0:
                raise InputError(
                    "a task needs examples in every split",
                    where=f"{self.name}.{part}",
                    got="no examples",
                    expected="one example or more",
                    fix="dln.Task.from_dataset(dataset) splits a dataset into three",
                )
            if dataset.labels != names:
                raise InputError(
                    "a split has other labels than the task",
                    where=f"{self.name}.{part}",
                    got=dataset.labels,
                    expected=names,
                    fix="dataset.with_labels(labels)",
                )
        if names is not None:
            _check_classes(names, self.name)

    @property
    def label_names(self) -> tuple[str, ...] | None:
        """The canonical names of the labels."""
        return None if self.labels is None else label_names(self.labels)

    def content_hash(self) -> str:
        """SHA-256 (hex) of the three datasets' contents."""
        hashes = [dataset.content_hash() for dataset in (self.train, self.dev, self.test)]
        return Dataset.from_pairs(zip(("train", "dev", "test"), hashes, strict=True)).content_hash()

    @classmethod
    def from_dataset(
        cls,
        dataset: Dataset,
        *,
        instruction: str | None = None,
        labels: Sequence[str] | None = None,
        seed: Seed = 42,
        dev_fraction: float = 0.25,
        test_fraction: float = 0.25,
        metric: Metric | str | None = None,
        name: str | None = None,
        input_name: str = "input",
    ) -> Task:
        """Make a task of one dataset, split by content: the part of a row depends on its input and the seed alone.

        Args:
            dataset: all examples.
            instruction: the initial prompt; default a sentence that names the labels.
            labels: label specifications with alternative spellings, if the dataset lacks them.
            seed: seed of the split.
            dev_fraction: expected share of the examples to select prompts on.
            test_fraction: expected share of the examples for the final score; the rest is the training set.
            metric: default exact match among the labels; for free texts by their kind (see `suggested_metric`).
            name: default the dataset's.
            input_name: name of an input, in one word.

        Raises:
            InputError: one class only, too few examples, or fractions that leave nothing to train on.
        """
        _check_fractions(dev_fraction, test_fraction, dataset.name)
        data = dataset if labels is None else dataset.with_labels(labels)
        specs = data.labels if labels is None else tuple(labels)
        if specs is not None:
            _check_classes([label for label, n in data.counts().items() if n > 0], data.name)
        targets = None if specs is None else data.targets
        keys = [text_key(x) for x in data.inputs]
        parts, notes = assign(keys, targets, seed, dev_fraction=dev_fraction, test_fraction=test_fraction)
        order = content_order(keys, seed)
        split = {name: data.select(i for i in order if parts[i] == name) for name in PARTS}
        return _made(
            split,
            specs,
            notes=(*data.notes, f"split by content with seed {seed}: {_sizes(split)}", *notes),
            instruction=instruction,
            metric=metric,
            name=name or data.name,
            input_name=input_name,
            report=data.report,
        )

    @classmethod
    def from_frame(
        cls,
        frame: object,
        input: str | Sequence[str] | None = None,  # noqa: A002
        target: str | None = None,
        *,
        name: str = "task",
        instruction: str | None = None,
        seed: Seed = 42,
        dev_fraction: float = 0.25,
        test_fraction: float = 0.25,
        metric: Metric | str | None = None,
        **options: Any,
    ) -> Task:
        """Make a task of a data frame, a Hugging Face dataset (its splits are the parts), or a list of dictionaries.

        Args:
            frame: a pandas or polars frame, an Arrow table, a Hugging Face dataset, or dictionaries.
            input: the input column, or several, which are joined; default guessed.
            target: the target column; default guessed.
            name: name of the task.
            instruction: see `from_dataset`, as the following.
            seed: of the split.
            dev_fraction: of the split.
            test_fraction: of the split.
            metric: of the results.
            options: further fields of `dln.DataSpec`: `group`, `split_by`, `split_column`, `labels`, …

        Raises:
            InputError: the columns, the labels or the options are invalid.
        """
        spec = DataSpec.make((), "Task.from_frame", input=columns_of(input), target=target, **options)
        if isinstance(frame, Mapping):  # splits of a Hugging Face dataset by name
            table = table_of_hf(cast("object", frame), split=None)
        elif isinstance(frame, list | tuple):
            table = table_of_dicts(cast("Sequence[Mapping[str, object]]", frame), name)
        else:
            table = table_of_frame(frame, name)
        return task_from_spec(
            spec,
            [table],
            name=name,
            instruction=instruction,
            seed=seed,
            dev_fraction=dev_fraction,
            test_fraction=test_fraction,
            metric=metric,
        )

    def with_metric(self, metric: Metric | str) -> Task:
        """Return the same task with another metric."""
        return replace(self, metric=load_metric(metric, self.labels))


MOST: Mapping[str, int] = {"train": 4000, "dev": 1000, "test": 2000}
"""Rows of a part that are used of a large file, unless a size is given."""

SAMPLED = 50_000
"""Rows of a file from which on a sample of about this size is divided into parts."""


def task_from_spec(
    spec: DataSpec,
    tables: Sequence[Table] | None = None,
    *,
    name: str,
    instruction: str | None = None,
    seed: int = 42,
    dev_fraction: float = 0.25,
    test_fraction: float = 0.25,
    metric: Metric | str | None = None,
    sizes: Mapping[str, int | None] | None = None,
) -> Task:
    """Make a task of the files or tables of a specification.

    The parts are those of `spec.split_column`, of the files `spec.dev_file` and `spec.test_file`, by time with
    `spec.split_by`, by group with `spec.group`, and by content otherwise. An input that is in two parts stays in the
    later one (test, dev, train).

    Args:
        spec: what is read and how.
        tables: tables in memory instead of the files of `spec.path`.
        name: name of the task.
        instruction: the initial prompt; default a sentence that names the labels.
        seed: seed of the split and of samples.
        dev_fraction: expected share of the dev set, if it is split off.
        test_fraction: expected share of the test set, if it is split off.
        metric: default exact match among the labels; for free texts by their kind.
        sizes: rows of each part to use at most; default `MOST`.

    Raises:
        InputError: the data cannot be read or divided.
    """
    _check_fractions(dev_fraction, test_fraction, name)
    given = dict(sizes or {})
    main = resolve(spec, tables, most=max(SAMPLED, 8 * max([0, *(size for size in given.values() if size)])))
    spec = main.spec
    specs, notes = main.labels, list(main.report.notes)
    parts: dict[str, list[Item]] = {part: [] for part in PARTS}
    files = [(part, path) for part, path in (("dev", spec.dev_file), ("test", spec.test_file)) if path]
    for part, path in files:
        parts[part], more = _other_file(main, path, part)
        notes += more
    known = None if specs is None else label_names(specs)
    items = main.items
    if known is not None:
        _check_classes(known, main.report.source)
    if spec.split_column is not None:
        rest, more = _by_column(items, spec.split_column, parts)
    elif spec.split_by is not None:
        times = [text_of(cell_of(item.cells, spec.split_by)) for item in items]
        rest, more = items, []
        shares = {f"{part}_fraction": 0.0 for part, _ in files}
        for item, part in zip(items, by_time(times, spec.split_by, **shares), strict=True):
            parts[part].append(item)
        more = [f"split by time, column {spec.split_by!r}"]
        rest = ()
    else:
        rest, more = items, []
    notes += more
    if rest:
        shares = {"dev": dev_fraction, "test": test_fraction} | {p: 0.0 for p in PARTS if parts[p]}
        groups = None if spec.group is None else [_group(item, spec.group) for item in rest]
        labelled = None if specs is None else [item.target for item in rest]
        where, more = assign(
            [item.key for item in rest],
            labelled,
            seed,
            dev_fraction=shares["dev"],
            test_fraction=shares["test"],
            groups=groups,
        )
        for item, part in zip(rest, where, strict=True):
            parts[part].append(item)
        by = "content" if groups is None else f"groups of equal {spec.group!r}"
        notes += [f"split by {by} with seed {seed}", *more]
    notes += _separate(parts)
    chosen: dict[str, Dataset] = {}
    for part in PARTS:
        ordered = [parts[part][i] for i in content_order([item.key for item in parts[part]], seed)]
        most = max(given.get(part) or MOST[part], 1)
        if len(ordered) > most:
            total = len(ordered)
            ordered = [ordered[i] for i in thinned([item.target if specs else "" for item in ordered], most)]
            if given.get(part) is None:
                notes.append(f"{part}: a sample of {len(ordered):,} of {total:,} rows is used (--{part}-size)")
        chosen[part] = examples_of(main, ordered, f"{name}.{part}")
    notes.append(f"parts: {_sizes(chosen)}")
    return _made(
        chosen,
        specs,
        notes=tuple(notes),
        instruction=instruction,
        metric=metric,
        name=name,
        spec=spec,
        report=replace(main.report, notes=tuple(notes)),
    )


def _check_fractions(dev: float, test: float, where: str) -> None:
    if min(dev, test) <= 0 or dev + test >= 1:
        raise InputError(
            "dev_fraction and test_fraction must be positive and leave examples to train on",
            where=where,
            got=f"{dev} and {test}",
            expected="two numbers > 0 with a sum below 1",
            fix="dev_fraction=0.25, test_fraction=0.25",
        )


def _made(
    parts: Mapping[str, Dataset],
    specs: tuple[str, ...] | None,
    *,
    notes: tuple[str, ...],
    instruction: str | None,
    metric: Metric | str | None,
    name: str,
    input_name: str = "input",
    spec: DataSpec | None = None,
    report: ReadReport | None = None,
) -> Task:
    train = parts["train"]
    missing = [
        f"no example of {label!r} in {part}"
        for part, subset in parts.items()
        for label, n in (subset.counts() if specs is not None else {}).items()
        if n == 0
    ]
    if len(missing) > 6:
        missing = [*missing[:5], f"and {len(missing) - 5} more labels without an example in a part"]
    said: list[str] = []
    several = specs is not None and spec is not None and spec.several == "combine"
    language = language_of(train.inputs) if instruction is None and input_name == "input" else ENGLISH
    if language is not ENGLISH:
        notes = (*notes, f"the default instruction is in {language.name}, the language of the inputs")
    if metric is None and specs is None:
        metric = suggested_metric([target for part in parts.values() for target in part.targets])
        said = [f"answers are compared by the metric {metric!r}"]
    return Task(
        name=name,
        instruction=instruction
        if instruction is not None
        else default_instruction(train.labels, input_name, language=language, several=several),
        wording=None if language is ENGLISH else language.wording,
        labels=specs,
        train=train,
        dev=parts["dev"],
        test=parts["test"],
        metric=load_metric("exact_match" if metric is None else metric, specs),
        notes=(*notes, *missing, *said),
        input_name=input_name,
        output_layer="sets" if several else "words",
        spec=spec,
        report=report,
    )


def _sizes(parts: Mapping[str, Dataset]) -> str:
    return ", ".join(f"{len(dataset)} {part}" for part, dataset in parts.items())


def _other_file(main: Resolved, path: Sequence[str], part: str) -> tuple[list[Item], list[str]]:
    """The examples of a separate file, read with the columns and labels of the main one."""
    names = None if main.labels is None else label_names(main.labels)
    dialect = dict.fromkeys(("format", "encoding", "delimiter", "quotechar", "sheet"))
    free = {
        "free_form": names is None,
        "labels": main.spec.labels or (None if names is None else list(main.labels or ())),
    }
    other = main.spec.model_copy(
        update={**dialect, **free, "path": tuple(path), "split_column": None, "group": None, "split_by": None}
    )
    found = resolve(other, evaluation=True)
    own = [f"{part}: {note}" for note in found.report.lines if not note.startswith("no row has the label")]
    return list(found.items), own


def _by_column(items: Sequence[Item], column: str, parts: Mapping[str, list[Item]]) -> tuple[list[Item], list[str]]:
    """Put rows into the parts that a column names; what is left is to be split off from train."""
    unknown: dict[str, int] = {}
    train: list[Item] = []
    for item in items:
        try:
            said = text_of(cell_of(item.cells, column)).lower()
        except Unusable:
            said = "a list"
        part = PART_NAMES.get(said)
        if part is None:
            unknown[said] = unknown.get(said, 0) + 1
        else:
            (train if part == "train" else parts[part]).append(item)
    if unknown:
        raise InputError(
            f"column {column!r} does not name a part in every row",
            where=items[0].place.partition(",")[0],
            got=", ".join(f"{value!r} ({n} rows)" for value, n in list(unknown.items())[:5]),
            expected="train, dev (or validation) and test",
            fix="correct the column, or leave out split_column",
        )
    if not train:
        raise InputError(
            f"column {column!r} says train nowhere", where=items[0].place.partition(",")[0], got="no row to train on"
        )
    absent = [part for part in ("dev", "test") if not parts[part]]
    notes = [f"parts of column {column!r}" + (f"; {' and '.join(absent)} split off from train" if absent else "")]
    if absent:
        return train, notes
    parts["train"].extend(train)
    return [], notes


def _group(item: Item, column: str) -> str:
    try:
        return text_of(cell_of(item.cells, column))
    except Unusable:
        return ""


def _separate(parts: dict[str, list[Item]]) -> list[str]:
    """Leave inputs that are in a later part out of the earlier ones."""
    notes: list[str] = []
    seen: set[str] = set()
    for part in reversed(PARTS):
        kept = [item for item in parts[part] if item.key not in seen]
        if len(kept) < len(parts[part]):
            notes.append(
                f"{len(parts[part]) - len(kept)} rows of {part} left out: their inputs are in a later part too"
            )
        seen |= {item.key for item in kept}
        parts[part] = kept
    return notes


def _check_classes(names: Sequence[str], where: str) -> None:
    if len(names) < 2:
        raise InputError(
            "a classification task needs at least two classes",
            where=where,
            got=f"only {', '.join(names) or 'no example at all'}",
            fix="check that the right column is the target; for free texts use free_form=True",
        )


def default_instruction(
    labels: Sequence[str] | None, input_name: str = "input", *, language: Language = ENGLISH, several: bool = False
) -> str:
    """Return an instruction that names the labels; the name of an input is for English only.

    Args:
        labels: None for free texts.
        input_name: in one word.
        language: of the instruction.
        several: whether labels are sets ("billing, refund"), of which the single labels are named.

    >>> default_instruction(("no", "yes"), "sentence")
    'Read the following sentence, then choose whether it is no or yes.'
    """
    if labels is None:
        text = language.answer
    elif several and language is ENGLISH:
        text = f"Read the following input, then name all that apply of {', '.join(single_labels(labels))}."
    else:
        *others, last = single_labels(labels) if several else labels
        text = language.choose.format(
            choice=f"{language.comma.join(others)}{language.either}{last}" if others else last
        )
    return text.replace("following input", f"following {input_name}", 1) if language is ENGLISH else text
