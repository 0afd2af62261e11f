"""Columns: which are the input, the target and the identifier, and the texts of their cells."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import cast

from dln.arguments import did_you_mean
from dln.data.spec import DataSpec
from dln.data.tables import Table, cell_of
from dln.errors import InputError

__all__ = ["INPUT_NAMES", "TARGET_NAMES", "ColumnChoice", "Unusable", "choose_columns", "input_text", "text_of"]

INPUT_NAMES = (
    "input", "text", "sentence", "question", "review", "x", "content", "document", "body", "message", "comment",
    "tweet", "utterance", "query", "prompt", "sentence1", "description", "memo", "note", "code", "title", "subject",
    "nachricht", "frage", "satz", "kommentar", "texte", "commentaire", "avis", "texto", "mensaje", "pregunta",
    "comentario", "mensagem", "pergunta", "testo", "tekst", "文本", "内容", "评论", "问题", "句子", "本文", "文章",
    "テキスト", "النص", "نص", "текст", "сообщение", "вопрос", "отзыв", "본문", "텍스트",
)  # fmt: skip
"""Column names taken as the input (case-insensitive), the best first."""

TARGET_NAMES = (
    "target", "label", "answer", "class", "y", "output", "category", "labels", "gold", "sentiment", "intent", "topic",
    "tag", "rating", "completion", "response", "answers", "stars", "kind", "type", "tags", "categories", "score",
    "grade", "ideal", "expected", "expected_output", "expectedoutput", "__expected",
    "kategorie", "klasse", "stimmung", "antwort", "catégorie", "étiquette", "classe", "réponse", "categoría",
    "categoria", "etiqueta", "clase", "respuesta", "resposta", "标签", "类别", "分类", "答案", "情感", "ラベル", "分類",
    "التصنيف", "метка", "категория", "класс", "ответ", "라벨", "분류",
)  # fmt: skip
"""Column names taken as the target (case-insensitive), the best first."""

PAIRS = (
    ("context", "question"), ("passage", "question"), ("document", "question"), ("premise", "hypothesis"),
    ("sentence1", "sentence2"), ("question1", "question2"), ("text1", "text2"), ("text_a", "text_b"),
    ("product1", "product2"), ("subject", "body"), ("title", "body"), ("title", "text"), ("title", "description"),
)  # fmt: skip
"""Columns that are read together if both are there."""

_ID_NAME = re.compile(
    r"(|#|id|_id|nr\.?|no\.?|num|number|index|idx|key|uuid|guid|row|row_?id|unnamed: 0|编号|номер|.*[_ .-]id)",
    re.IGNORECASE,
)


_TARGET_WORD = re.compile(
    r"(?:^|[\W_])(?:labels?|class|category|target|sentiment|intent|topic|y)(?:$|[\W_])|^(?:is|has)_", re.IGNORECASE
)
"""What the name of a target column often has in it."""


class Unusable(ValueError):
    """A cell that has no text; the message says why."""


@dataclass(frozen=True, slots=True)
class ColumnChoice:
    """The input, target and id columns, with notes on what was guessed."""

    input: tuple[str, ...]
    target: str | None
    id: str | None = None
    notes: tuple[str, ...] = ()


def text_of(value: object) -> str:
    """A cell as a stripped text; numbers and booleans become texts, what is missing is "".

    Raises:
        Unusable: a list or an object, or a character that no text may have.
    """
    if isinstance(value, str):
        text = value.strip()
        if text.isascii() and "\x00" not in text:
            return text
    elif isinstance(value, bool):
        text = "true" if value else "false"
    elif isinstance(value, int):
        text = str(value)
    elif value is None or (isinstance(value, float) and not math.isfinite(value)):
        text = ""
    elif isinstance(value, float):
        text = str(int(value)) if value.is_integer() else repr(value)
    elif isinstance(value, bytes):
        try:
            text = value.decode("utf-8").strip()
        except UnicodeDecodeError as error:
            raise Unusable(f"bytes that are no UTF-8 text: {value[:20]!r}") from error
    elif isinstance(value, list | tuple | Mapping):
        kind = "object" if isinstance(value, Mapping) else "list"
        raise Unusable(f"a {kind}, not a text: {_json(cast('object', value))[:60]}")
    else:
        text = str(value).strip()
    if not text.isascii() or "\x00" in text:
        broken = next((c for c in text if c == "\x00" or "\ud800" <= c <= "\udfff"), None)
        if broken is not None:
            raise Unusable(f"the invalid character U+{ord(broken):04X} at position {text.index(broken)}")
    return text


def _json(value: object) -> str:
    return json.dumps(value, ensure_ascii=False, default=str)


def input_text(cells: Mapping[str, object], columns: Sequence[str]) -> str:
    r"""The input of a row: the text of its column, or a line `name: text` for each of several columns with a text.

    >>> input_text({"subject": "FYI", "body": "Noon.", "cc": ""}, ["subject", "body", "cc"])
    'subject: FYI\nbody: Noon.'

    Raises:
        Unusable: see `text_of`.
    """
    if len(columns) == 1:
        return text_of(cell_of(cells, columns[0]))
    names = [column.rpartition(".")[2] for column in columns]
    shown = names if len(set(names)) == len(names) else columns
    texts = [(name, text_of(cell_of(cells, column))) for name, column in zip(shown, columns, strict=True)]
    return "\n".join(f"{name}: {text}" for name, text in texts if text)


def choose_columns(table: Table, spec: DataSpec, *, with_target: bool = True) -> ColumnChoice:
    """The named columns; what is not named is guessed, by name first, then by content, and said.

    Raises:
        InputError: a named column is missing, or nothing can be guessed.
    """
    columns = [c for c in table.columns if c]
    for column in (*spec.input, *((spec.target,) if with_target else ()), spec.id):
        if column is not None:
            require_column(column, table)
    target, found = spec.target if with_target else None, list(spec.input)
    free = [c for c in columns if c not in found and c != target and c not in (spec.split_column, spec.id)]
    free = [c for c in free if c not in (spec.group, spec.split_by)]
    sample = table.rows[:2000]
    profile = {c: _Profile.of(cell_of(row.cells, c) for row in sample if not row.problem) for c in columns}
    identifier = spec.id or next((c for c in free if _is_id(c, profile[c]) and _ID_NAME.fullmatch(c)), None)
    free = [c for c in free if c != identifier]
    if with_target and target is None:
        target = _by_name(TARGET_NAMES, free, found)
    if not found:
        found = _guess_named_input([c for c in free if c != target], profile)
    chat = [c for c in found if c.endswith(".text") and c.removesuffix("text") + "reply" in columns]
    if with_target and target is None and chat and not spec.input:
        base = chat[0].removesuffix("text")
        found, target = [base + "prompt"], base + "reply"
    free = [c for c in free if c not in found and c != target]
    if len(free) > 1:
        free = [c for c in free if not _is_id(c, profile[c])] or free
    if with_target and target is None:
        target = _guess_target(free, profile, found)
    if not found:
        found = _guess_input([c for c in free if c != target], profile)
    if not found or (with_target and target is None):
        missing = "input" if not found else "target"
        named = [c for c in free if c not in found and c != target] or free
        by_length = sorted(named, key=lambda c: profile[c].length, reverse=missing == "input")
        fix = f'name it: {missing}="{by_length[0]}"' if by_length else f"add a column with the {missing}s"
        raise InputError(
            f"cannot tell which column is the {missing}",
            where=table.source,
            got=_listed(columns),
            expected="an input column and a target column" if with_target else "an input column",
            fix=fix,
        )
    guessed = [f"column {c!r} taken as the input" for c in found] if not spec.input and len(found) == 1 else []
    if not spec.input and len(found) > 1:
        guessed = [f"columns {', '.join(map(repr, found))} taken as the input"]
    if with_target and spec.target is None:
        guessed.append(f"column {target!r} taken as the target")
    if identifier is not None and spec.id is None:
        guessed.append(f"column {identifier!r} taken as the identifier")
    return ColumnChoice(tuple(found), target, identifier, (", ".join(guessed),) if guessed else ())


def require_column(wanted: str, table: Table) -> None:
    """Refuse a column that is not in the table.

    Raises:
        InputError: naming the columns that are, and the one that was probably meant.
    """
    columns = table.columns
    if wanted in columns or any(cell_of(row.cells, wanted) is not None for row in table.rows[:200]):
        return
    by_case = {c.casefold(): c for c in columns}
    close = did_you_mean(wanted.casefold(), by_case)
    raise InputError(
        f"there is no column {wanted!r}",
        where=table.source,
        got=_listed(columns),
        expected="a column of the file",
        fix=f"did you mean {by_case[close]!r}?" if close else "name one of these columns",
    )


@dataclass(frozen=True, slots=True)
class _Profile:
    """The values of a column: how many, how many distinct, their mean length, and what they are."""

    n: int
    distinct: int
    length: float
    words: float
    numeric: bool
    dates: bool
    lists: bool

    @classmethod
    def of(cls, values: Iterable[object]) -> _Profile:
        found = list(values)
        texts = [str(value).strip() for value in found if value is not None and str(value).strip()]
        n = max(1, len(texts))
        return cls(
            n=len(texts),
            distinct=len(set(texts)),
            length=sum(map(len, texts)) / n,
            words=sum(text.count(" ") + 1 for text in texts) / n,
            numeric=bool(texts) and all(re.fullmatch(r"[-+]?[\d.,:/T -]+Z?", text) for text in texts),
            dates=bool(texts) and all(re.match(r"\d{1,4}[-./]\d{1,2}[-./]\d{1,4}", text) for text in texts),
            lists=any(isinstance(value, list) for value in found),
        )

    @property
    def is_label(self) -> bool:
        return 2 <= self.distinct <= max(2, self.n / 2) and self.length <= 60


def _is_id(name: str, profile: _Profile) -> bool:
    """Whether a column only identifies its rows."""
    if profile.n < 2 or profile.distinct < profile.n or profile.lists:
        return False
    return bool(_ID_NAME.fullmatch(name.rpartition(".")[2])) or profile.numeric


def _guess_named_input(columns: Sequence[str], profile: Mapping[str, _Profile]) -> list[str]:
    by_name = {c.strip().casefold().rpartition(".")[2]: c for c in reversed(columns)}
    for pair in PAIRS:
        both = [by_name[name] for name in pair if name in by_name]
        prefixes = {c.rpartition(".")[0] for c in both}
        if len(both) == 2 and len(prefixes) == 1 and all(profile[c].distinct > 1 for c in both):
            return both
    found = _by_name(INPUT_NAMES, columns, ())
    return [] if found is None else [found]


def _guess_target(columns: Sequence[str], profile: Mapping[str, _Profile], found: Sequence[str]) -> str | None:
    if len(columns) == 1 and found:
        return columns[0]
    labelled = [c for c in columns if profile[c].is_label and not profile[c].dates and not _ID_NAME.fullmatch(c)]
    named = [c for c in labelled if _TARGET_WORD.search(c)]
    labelled = named if len(named) == 1 else labelled
    if len(columns) == 2 and not found:
        first, second = columns
        return second if profile[second].distinct <= profile[first].distinct else first
    return labelled[0] if len(labelled) == 1 else None


def _guess_input(columns: Sequence[str], profile: Mapping[str, _Profile]) -> list[str]:
    if len(columns) == 1:
        return list(columns)
    texts = [c for c in columns if not profile[c].numeric and profile[c].words >= 2 and profile[c].distinct > 1]
    longest = sorted(texts, key=lambda c: -profile[c].length)
    clear = len(longest) == 1 or (len(longest) > 1 and profile[longest[0]].length >= 2 * profile[longest[1]].length)
    return longest[:1] if clear else []


def _by_name(names: Sequence[str], columns: Sequence[str], taken: Sequence[str]) -> str | None:
    free = [c for c in reversed(columns) if c not in taken]
    whole = {c.strip().casefold(): c for c in free}
    last = {c.strip().casefold().rpartition(".")[2]: c for c in free}
    if names is TARGET_NAMES:  # "answers.text" is a target, although "text" is an input
        last |= {c.strip().casefold().split(".")[0]: c for c in free if "." in c and not c.endswith((".answer_start",))}
    else:
        last = {name: c for name, c in last.items() if not {*c.casefold().split(".")[:-1]} & set(TARGET_NAMES)}
    return next((where[name] for where in (whole, last) for name in names if name in where), None)


def _listed(columns: Sequence[str]) -> str:
    shown = ", ".join(repr(c[:40]) for c in columns[:12])
    return f"columns {shown}" + (f" and {len(columns) - 12} more" if len(columns) > 12 else "")
