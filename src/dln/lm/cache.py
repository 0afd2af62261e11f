"""`Cached`: a language model whose answers are stored in an SQLite file and never computed twice.

`Cached(Metered(lm), store)` counts only what is computed (a hit is free, for the budget too);
`Metered(Cached(lm, store))` counts everything that is asked.

**File.** `Store` may be used by several processes and threads, and survives being killed. Every value carries a
checksum over its key and its bytes, verified at each reading; a value that does not match counts as missing. A file
that SQLite cannot read is moved aside and a new one is started.

**Partial results.** A call that fails may have been answered in part. `Cached` opens `keeping_partial_results` around
its call, and an engine that fails passes each complete answer to `keeper_of` its batch. The batch is recognised by
identity: a wrapper in between that makes another batch breaks the link, and no answer is stored for the wrong request.
"""

from __future__ import annotations

import hashlib
import json
import os
import sqlite3
import threading
import time
import weakref
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from dataclasses import asdict
from pathlib import Path
from typing import Any, Self, TypeVar, cast

import numpy as np

from dln.arguments import Count, NonNegative, checked
from dln.errors import DlnError, InputError, RunFailed
from dln.lm.base import (
    Completion,
    LanguageModel,
    NextRow,
    NextTokens,
    Sampling,
    Target,
    Token,
    TokenLogProbs,
    Wrapper,
    check_counts,
    next_tokens_verb,
    text_of,
)
from dln.numerics import Floats

__all__ = ["Cached", "Keep", "Store", "keeper_of", "keeping_partial_results"]

T = TypeVar("T")

_SCHEMA = 1
_APPLICATION_ID = 0x646C6E63  # "dlnc": tells our files from other people's databases
_KEYS_PER_QUERY = 500  # below every SQLite's limit of variables in one statement
_CORRUPT = {sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB}
_BUSY = {sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED}
_NO_ACCESS = {sqlite3.SQLITE_CANTOPEN, sqlite3.SQLITE_READONLY, sqlite3.SQLITE_PERM, sqlite3.SQLITE_AUTH}


@checked
class Store:
    """Bytes by key, in one SQLite file (or in memory for `Store(":memory:")`).

    Args:
        path: the file; it and its directory are made if they do not exist.
        timeout: seconds to wait for another process that is writing.

    Attributes:
        notes: what happened to the file that a user should know of, in sentences.
        damaged: values whose checksum did not match when they were read; none of them was returned.

    Raises:
        InputError: the place is not writable, the file is another program's database, or it was
            written by a newer version of this program.
        RunFailed: SQLite failed otherwise (disk full, another process holds the file for too long).
    """

    def __init__(self, path: str | os.PathLike[str], *, timeout: NonNegative = 60.0) -> None:
        self.path = os.fspath(path)
        self.notes: list[str] = []
        self.damaged = 0
        self._timeout = timeout
        self._lock = threading.RLock()
        self._process = os.getpid()
        self._connection: sqlite3.Connection | None = None
        self._inherited: list[sqlite3.Connection | None] = []
        self._run(lambda _: None)  # what is wrong with the path is said now, not at the first request

    def __deepcopy__(self, memo: dict[int, object]) -> Store:
        """The store itself: it stands for one file."""
        return self

    def get_many(self, keys: Sequence[bytes]) -> dict[bytes, bytes]:
        """The intact values among those of `keys`; missing and damaged ones are left out."""
        return self._run(lambda connection: self._read(connection, keys))

    def put_many(self, values: Mapping[bytes, bytes]) -> dict[bytes, bytes]:
        """Store all values in one transaction (all of them or none) and return what is now stored.

        Where another process has stored an intact value for a key first, that one stays and is
        returned: whoever asks again, at any later time, gets what was answered here.
        """

        def write(connection: sqlite3.Connection) -> dict[bytes, bytes]:
            with connection:  # commits, or rolls back on any exception
                connection.execute("BEGIN IMMEDIATE")
                before = self._read(connection, list(values), count=False)
                connection.executemany(
                    "INSERT OR REPLACE INTO answers (key, value, checksum) VALUES (?, ?, ?)",
                    [(key, value, _checksum(key, value)) for key, value in values.items() if key not in before],
                )
                stored = {**values, **before}
                if self._read(connection, list(values), count=False) != stored:
                    # in a damaged tree of pages a row can be written where no search arrives, unnoticed by SQLite
                    raise _corrupt("what was written cannot be read back")
            return stored

        return self._run(write)

    def __len__(self) -> int:
        return self._run(lambda connection: int(connection.execute("SELECT COUNT(*) FROM answers").fetchone()[0]))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the file; the next request opens it again. An in-memory store is emptied."""
        with self._lock:
            if self._connection is not None:
                self._connection.close()
                self._connection = None

    def _read(self, connection: sqlite3.Connection, keys: Sequence[bytes], count: bool = True) -> dict[bytes, bytes]:
        found: dict[bytes, bytes] = {}
        for part in _parts(list(dict.fromkeys(keys)), _KEYS_PER_QUERY):
            query = f"SELECT key, value, checksum FROM answers WHERE key IN ({','.join('?' * len(part))})"  # noqa: S608 - question marks only
            for key, value, checksum in cast(Iterator[tuple[bytes, object, object]], connection.execute(query, part)):
                if isinstance(value, bytes) and checksum == _checksum(key, value):
                    found[key] = value
                elif count:
                    self.damaged += 1
        return found

    def _run(self, operation: Callable[[sqlite3.Connection], T]) -> T:
        if os.getpid() != self._process:
            # A connection must not be used, nor closed, in a forked child: keep it unused and open another.
            self._inherited.append(self._connection)
            self._connection, self._process, self._lock = None, os.getpid(), threading.RLock()
        with self._lock:
            try:
                return operation(self._open())
            except sqlite3.Error as error:
                if _code(error) not in _CORRUPT or self.path == ":memory:":
                    raise self._translated(error) from error
                self._move_aside(error)
            except UnicodeDecodeError as error:  # SQLite quotes what it found, and damaged bytes are not always text
                self._move_aside(error)
            try:
                return operation(self._open())
            except sqlite3.Error as error:
                raise self._translated(error) from error

    def _open(self) -> sqlite3.Connection:
        if self._connection is None:
            try:
                if self.path != ":memory:":
                    Path(self.path).parent.mkdir(parents=True, exist_ok=True)
            except OSError as error:
                raise self._no_access(error) from error
            connection = sqlite3.connect(
                self.path, timeout=self._timeout, isolation_level=None, check_same_thread=False
            )
            try:
                self._prepare(connection)
            except (sqlite3.Error, UnicodeDecodeError, DlnError):
                connection.close()
                raise
            self._connection = connection
            weakref.finalize(self, connection.close)
        return self._connection

    def _prepare(self, connection: sqlite3.Connection) -> None:
        deadline = time.monotonic() + self._timeout
        while True:
            try:
                # Changing the journal does not wait for other processes by itself, so wait here. NORMAL
                # syncs at checkpoints: a killed process loses nothing, a power cut at most the last values.
                connection.execute("PRAGMA journal_mode = WAL")
                connection.execute("PRAGMA synchronous = NORMAL")
                with connection:
                    connection.execute("BEGIN IMMEDIATE")
                    self._check_schema(connection)
                return
            except sqlite3.OperationalError as error:
                if _code(error) not in _BUSY or time.monotonic() > deadline:
                    raise
                time.sleep(0.01)

    def _check_schema(self, connection: sqlite3.Connection) -> None:
        application, version, tables = (
            int(connection.execute(query).fetchone()[0])
            for query in ("PRAGMA application_id", "PRAGMA user_version", "SELECT COUNT(*) FROM sqlite_master")
        )
        if application == 0 and tables == 0:
            connection.execute(
                "CREATE TABLE answers (key BLOB PRIMARY KEY, value BLOB NOT NULL, checksum BLOB NOT NULL) WITHOUT ROWID"
            )
            connection.execute(f"PRAGMA application_id = {_APPLICATION_ID}")
            connection.execute(f"PRAGMA user_version = {_SCHEMA}")
        elif application != _APPLICATION_ID:
            raise InputError(
                "the file is a database of another program; it was left as it is",
                where=self.path,
                got=f"application id {application}",
                expected=f"application id {_APPLICATION_ID}, or no file",
                fix="choose another path for the cache",
            )
        elif version > _SCHEMA:
            raise InputError(
                "the cache was written by a newer version of dln",
                where=self.path,
                got=f"schema {version}",
                expected=f"schema {_SCHEMA}",
                fix="upgrade dln, or choose another path for the cache",
            )
        else:
            try:
                connection.execute("SELECT key, value, checksum FROM answers LIMIT 0")
            except sqlite3.OperationalError as error:
                if _code(error) != sqlite3.SQLITE_ERROR:
                    raise
                raise _corrupt(str(error)) from error  # no such table or column: the schema's text was damaged

    def _move_aside(self, error: Exception) -> None:
        self.close()
        n = 1
        while Path(f"{self.path}.corrupt-{n}").exists():
            n += 1
        for suffix in ("", "-wal", "-shm"):  # together: a stray journal must not meet the new file
            with suppress(FileNotFoundError):  # another process may have moved it first
                Path(self.path + suffix).rename(f"{self.path}.corrupt-{n}{suffix}")
        self.notes.append(
            f"{self.path} was damaged ({error}); it is now {self.path}.corrupt-{n}, and a new cache began."
        )

    def _translated(self, error: sqlite3.Error) -> DlnError:
        if _code(error) in _NO_ACCESS:
            return self._no_access(error)
        if _code(error) in _BUSY:
            return RunFailed(
                f"another process has held the cache for more than {self._timeout:g} s",
                where=self.path,
                fix="wait for it to end, or choose another path for the cache",
            )
        return RunFailed("the cache cannot be used", where=self.path, got=str(error), fix="look for a full disk")

    def _no_access(self, error: Exception) -> InputError:
        return InputError(
            "the cache cannot be opened for writing",
            where=self.path,
            got=str(error),
            expected="a file in a writable directory",
            fix="choose another path for the cache, or mend the directory's permissions",
        )


def _corrupt(what: str) -> sqlite3.DatabaseError:
    """An error as SQLite raises it where it notices damage itself."""
    error = sqlite3.DatabaseError(what)
    error.sqlite_errorcode = sqlite3.SQLITE_CORRUPT
    return error


def _checksum(key: bytes, value: bytes) -> bytes:
    return hashlib.blake2b(value, digest_size=16, key=key[:64]).digest()


def _parts(keys: list[bytes], size: int) -> Iterator[list[bytes]]:
    return (keys[start : start + size] for start in range(0, len(keys), size))


def _code(error: sqlite3.Error) -> int:
    return getattr(error, "sqlite_errorcode", -1) & 0xFF  # the low byte; the rest tells variants apart


Keep = Callable[[int, object], object]
"""Takes (position in the batch, what the verb would have returned for it)."""

_open: ContextVar[tuple[Sequence[str], Keep] | None] = ContextVar("keeping_partial_results", default=None)


@contextmanager
def keeping_partial_results(contexts: Sequence[str], keep: Keep) -> Generator[None]:
    """Until the end of the block, give `keep` what a failed call with this very batch had already answered."""
    token = _open.set((contexts, keep))
    try:
        yield
    finally:
        _open.reset(token)


def keeper_of(contexts: Sequence[str]) -> Keep | None:
    """Who keeps answers to this very batch; None where nobody does."""
    found = _open.get()
    return found[1] if found is not None and found[0] is contexts else None


A = TypeVar("A")


@checked
class Cached(Wrapper):
    """The answers of `inner`, kept in `store`.

    A key covers the model's fingerprint, the operation, context, target (the ids of a draw of this
    model, else the text), parameters and the draw's seed; at temperature 0 the seed has no effect and
    is left out. Answers that cannot be right (NaN or positive log-probabilities) are passed on and
    never stored. Numbers come back bit by bit as they were computed. What a call that failed had already
    answered is stored too, where the model hands it over (see `dln.lm.cache`).

    Args:
        inner: the model that computes what is missing.
        store: where answers are kept; several models may share one.
        chunk: requests per call of the model and per transaction.

    Attributes:
        hits: requests answered without the model (repetitions within one call are hits too).
        misses: requests that the model computed.
    """

    def __init__(self, inner: LanguageModel, store: Store, *, chunk: Count = 256) -> None:
        super().__init__(inner)
        self._store = store
        self._chunk = chunk
        self._counting = threading.Lock()
        self.hits = 0
        self.misses = 0

    @property
    def store(self) -> Store:
        """Where the answers are."""
        return self._store

    def sample(self, contexts: Sequence[str], sampling: Sampling, seeds: Sequence[int]) -> list[Completion]:
        """One draw per context, stored by seed: a repeated draw is the same, a new seed a new draw."""
        check_counts("seeds", contexts, seeds)
        parameters = [float(sampling.temperature), float(sampling.top_p), sampling.max_tokens, list(sampling.stop)]
        counted = [None if sampling.temperature == 0 else seed for seed in seeds]
        return self._answers(
            [self._key("sample", context, parameters, seed) for context, seed in zip(contexts, counted, strict=True)],
            contexts,
            lambda batch, rows: self._inner.sample(batch, sampling, [seeds[i] for i in rows]),
            _pack_completion,
            _unpack_completion,
        )

    def log_prob(self, contexts: Sequence[str], targets: Sequence[Target]) -> list[TokenLogProbs]:
        """log p of each target's tokens given its context, pair by pair."""
        check_counts("targets", contexts, targets)
        identities = map(self._identity, targets)
        return self._answers(
            [self._key("log_prob", context, target) for context, target in zip(contexts, identities, strict=True)],
            contexts,
            lambda batch, rows: self._inner.log_prob(batch, [targets[i] for i in rows]),
            _pack_scores,
            _unpack_scores,
        )

    def choice_log_probs(self, contexts: Sequence[str], labels: Sequence[str]) -> Floats:
        """[N, C] log-mass of each label; stored per context with the list of labels."""
        rows = self._answers(
            [self._key("choice", context, list(labels)) for context in contexts],
            contexts,
            lambda batch, _: list(self._inner.choice_log_probs(batch, labels)),
            _pack_row,
            _unpack_row,
        )
        return np.stack(rows) if rows else np.zeros((0, len(labels)))

    def next_token_log_probs(self, contexts: Sequence[str], tokens: Sequence[Token] = (), top: int = 0) -> NextTokens:
        """Next-token log-probabilities; stored per context with the list of tokens and `top`."""
        ask = next_tokens_verb(self._inner)
        wanted = [self.capabilities.next_tokens, *tokens]  # another mode may tell more of the tokens
        digest = hashlib.sha256(json.dumps(wanted, separators=(",", ":")).encode("ascii")).hexdigest()
        rows = self._answers(
            [self._key("next", context, digest, top) for context in contexts],
            contexts,
            lambda batch, _: ask(batch, tokens, top).rows,
            _pack_next,
            _unpack_next,
        )
        return NextTokens.of(rows, len(tokens))

    def _key(self, operation: str, *parts: object) -> bytes:
        content = [_SCHEMA, self._inner.fingerprint(), operation, *parts]
        return hashlib.sha256(json.dumps(content, separators=(",", ":")).encode("ascii")).digest()

    def _identity(self, target: Target) -> object:
        if isinstance(target, Completion) and target.token_ids is not None and target.model == self.fingerprint():
            return [list(target.token_ids), target.text_tokens]
        return text_of(target)

    def _answers(
        self,
        keys: list[bytes],
        contexts: Sequence[str],
        compute: Callable[[list[str], list[int]], list[A]],
        pack: Callable[[A], bytes | None],
        unpack: Callable[[bytes], A],
    ) -> list[A]:
        first_row = {key: row for row, key in reversed(list(enumerate(keys)))}
        answers = {key: unpack(value) for key, value in self._store.get_many(keys).items()}
        missing = [key for key in dict.fromkeys(keys) if key not in answers]
        with self._counting:
            self.hits += len(keys) - len(missing)
            self.misses += len(missing)
        # The last bits of a float may depend on the batch it was computed in. So the missing requests are
        # computed in consecutive chunks of fixed size, in their given order, and each chunk is stored whole
        # before the next begins: a process that was killed finds, when it asks again, exactly the chunks
        # missing that it had not finished, and computes each in the same company as without the interruption.
        # Only engines whose answers do not depend on company hand over a part of a chunk that failed.
        for start in range(0, len(missing), self._chunk):
            part = missing[start : start + self._chunk]
            rows = [first_row[key] for key in part]
            batch = [contexts[row] for row in rows]
            came: dict[int, object] = {}
            try:
                with keeping_partial_results(batch, came.__setitem__):
                    computed = dict(zip(part, compute(batch, rows), strict=True))
            except BaseException:
                self._store.put_many(_packed({part[i]: cast("A", answer) for i, answer in came.items()}, pack))
                raise
            answers |= computed
            answers |= {key: unpack(value) for key, value in self._store.put_many(_packed(computed, pack)).items()}
        return [answers[key] for key in keys]


def _packed(answers: dict[bytes, A], pack: Callable[[A], bytes | None]) -> dict[bytes, bytes]:
    """What may be stored of it."""
    return {key: value for key, value in ((key, pack(answer)) for key, answer in answers.items()) if value is not None}


def _pack_completion(draw: Completion) -> bytes | None:
    if not (_possible(draw.log_probs or ()) and _possible(draw.sampling_log_probs or ())):
        return None
    # Python writes floats so that they are read back exactly; numbers of numpy become plain ones
    return json.dumps(asdict(draw), default=lambda number: number.item()).encode("ascii")


def _unpack_completion(value: bytes) -> Completion:
    record = cast("dict[str, Any]", json.loads(value))
    for name in ("token_ids", "log_probs", "sampling_log_probs"):
        record[name] = None if record[name] is None else tuple(record[name])
    return Completion(**record)


def _pack_scores(scores: TokenLogProbs) -> bytes | None:
    row = _pack_row(scores.values)
    return None if row is None else int(scores.text_tokens).to_bytes(8, "little") + row


def _unpack_scores(value: bytes) -> TokenLogProbs:
    return TokenLogProbs(_unpack_row(value[8:]), int.from_bytes(value[:8], "little"))


def _pack_row(row: Floats) -> bytes | None:
    return np.asarray(row, dtype="<f8").tobytes() if _possible(row) else None


def _unpack_row(value: bytes) -> Floats:
    return np.frombuffer(value, dtype="<f8").astype(np.float64)


def _pack_next(row: NextRow) -> bytes | None:
    told = ~np.isnan(row.log_probs)
    if not (_possible([row.bound, *row.log_probs[told], *(value for _, value in row.top)])):
        return None
    if row.bound == -np.inf and not told.all():
        return None  # a value that is missing without being bounded
    top = json.dumps([[*token, value] for token, value in row.top]).encode("ascii")
    numbers = np.concatenate([[row.bound], row.log_probs]).astype("<f8")
    return len(row.log_probs).to_bytes(8, "little") + numbers.tobytes() + top


def _unpack_next(value: bytes) -> NextRow:
    end = 8 * (int.from_bytes(value[:8], "little") + 2)
    numbers = _unpack_row(value[8:end])
    top = cast("list[tuple[str, int | None, float]]", json.loads(value[end:]))
    return NextRow(numbers[1:], float(numbers[0]), tuple((Token(text, token_id), p) for text, token_id, p in top))


def _possible(values: Sequence[float] | Floats) -> bool:
    return bool((np.asarray(values, dtype=np.float64) <= 1e-6).all())  # NaN compares false
