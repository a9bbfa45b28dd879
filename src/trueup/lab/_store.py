"""Store every finished cell in one SQLite file, atomically.

A row is a cell under one fingerprint (its code, data and settings), so that a stored result is found only
while it is still what the code would compute. Rows under older fingerprints stay, and are never taken as
current. Verdicts are not stored: they are recomputed from cells.

Each row holds a sha256 of its content. A row that does not match it, or cannot be read, is damaged: a warning
names its cell, and the cell counts as missing, so that the next run computes it again.

Several runs may write at once. SQLite's write-ahead log allows readers and one writer at the same time, and
each cell is one transaction: whatever kills a run, the cells stored before are intact.
"""

from __future__ import annotations

import contextlib
import datetime
import hashlib
import io
import json
import math
import sqlite3
import time
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, cast

import numpy as np

from trueup.lab._cell import Cell, CellResult, Items

SCHEMA = 2
_APPLICATION = 0x74727570  # "trup": marks the SQLite file as ours
_BUSY_SECONDS = 60.0
_PAGE = 256

_TABLES = """
CREATE TABLE environments (
    id INTEGER PRIMARY KEY,
    document TEXT NOT NULL UNIQUE
);
CREATE TABLE cells (
    id INTEGER PRIMARY KEY,
    fingerprint TEXT NOT NULL UNIQUE,
    study TEXT NOT NULL,
    scale TEXT NOT NULL,
    protocol INTEGER NOT NULL,
    kind TEXT NOT NULL,
    arm TEXT NOT NULL,
    condition TEXT NOT NULL,
    hyper TEXT NOT NULL,
    seed INTEGER NOT NULL,
    instance TEXT NOT NULL,
    status TEXT NOT NULL CHECK (status IN ('ok', 'diverged', 'failed')),
    numbers TEXT NOT NULL,
    series TEXT NOT NULL,
    arrays BLOB,
    error TEXT NOT NULL,
    seconds REAL NOT NULL,
    peak_memory INTEGER,
    environment INTEGER NOT NULL REFERENCES environments (id),
    artefact TEXT NOT NULL,
    stored_at TEXT NOT NULL,
    cpu_seconds REAL NOT NULL DEFAULT 0,
    checksum TEXT NOT NULL DEFAULT ''
);
CREATE INDEX cells_without_checksum ON cells (id) WHERE checksum = '';
CREATE INDEX cells_by_study ON cells (study, scale, id);
CREATE TABLE protocols (
    study TEXT NOT NULL,
    scale TEXT NOT NULL,
    protocol INTEGER NOT NULL,
    first_run TEXT NOT NULL,
    PRIMARY KEY (study, scale, protocol)
);
CREATE TABLE runs (
    study TEXT NOT NULL,
    scale TEXT NOT NULL,
    kind TEXT NOT NULL,
    name TEXT NOT NULL,
    seeds INTEGER,
    device TEXT NOT NULL DEFAULT 'cpu',
    PRIMARY KEY (study, scale)
);
"""

# From schema 1, whose rows are not changed.
_MIGRATION = """
ALTER TABLE cells ADD COLUMN cpu_seconds REAL NOT NULL DEFAULT 0;
ALTER TABLE cells ADD COLUMN checksum TEXT NOT NULL DEFAULT '';
CREATE INDEX cells_without_checksum ON cells (id) WHERE checksum = '';
ALTER TABLE runs ADD COLUMN device TEXT NOT NULL DEFAULT 'cpu';
"""

_COLUMNS = (
    "fingerprint, study, scale, protocol, kind, arm, condition, hyper, seed, instance, "
    "status, numbers, series, arrays, error, seconds, cpu_seconds, peak_memory, artefact, stored_at"
)
_PUT = f"INSERT INTO cells ({_COLUMNS}, environment) VALUES ({', '.join('?' * 21)})"
_SELECT = f"""
SELECT cells.id, {_COLUMNS}, checksum, environments.document AS environment_document
FROM cells JOIN environments ON environments.id = cells.environment
"""


class StoreError(RuntimeError):
    """The store cannot be opened, read or written; the message says why and how to fix it."""


class Store:
    """Finished cells by fingerprint, in one SQLite file.

    Use it in the thread that opened it. Large artefacts of stages are in the folder `artefacts` beside it.

    Args:
        path: the file; created, with its folder, if it does not exist.
        create: False for a store that must exist.
        readonly: True to never write, for example on a read-only disk. A missing store is then empty, and one
            of an older schema is read from a copy in memory.

    Raises:
        StoreError: if the file is not a store, has a newer schema, is damaged, or cannot be written.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder, Store(folder + "/cells.sqlite") as store:
        ...     cell = Cell("demo", "smoke", 1, "report", arm="sgd", seed=7)
        ...     store.put("f00d", cell, CellResult("ok", {"accuracy": 0.9}))
        ...     store.get("f00d").numbers
        {'accuracy': 0.9}
    """

    def __init__(self, path: str | Path, *, create: bool = True, readonly: bool = False) -> None:
        self.path = Path(path).expanduser().absolute()
        self.artefacts = self.path.with_name(self.path.name + ".artefacts")
        self._environments: dict[str, int] = {}
        self._warned: set[int] = set()  # damaged rows that a warning has named
        if self.path.is_dir():
            raise StoreError(f"{self.path} is a folder; name a file, such as {self.path / 'cells.sqlite'}")
        if not create and not self.path.exists():
            raise StoreError(f"there is no store at {self.path}; `trueup run` creates one, or name another")
        with self._explained():
            if not readonly:
                self.path.parent.mkdir(parents=True, exist_ok=True)
                self._connect(self.path)
            elif self.path.exists():
                self._connect_readonly()
            else:
                self._connect(":memory:")
        try:
            with self._explained():
                if readonly:
                    self._prepare_readonly()
                else:
                    self._prepare()
        except BaseException:
            self._connection.close()
            raise

    def get(self, fingerprint: str) -> CellResult | None:
        """Return the stored result of a cell, failed ones included; `None` if there is none.

        A damaged result counts as none, and a warning names it.
        """
        with self._explained():
            row = self._row(fingerprint)
        read = None if row is None else self._read(row)
        return None if read is None else read[1]

    def put(self, fingerprint: str, cell: Cell, result: CellResult) -> None:
        """Store one result, in one transaction.

        The first result that is not `failed` stays (a second run computed the same); a failed or damaged
        result is replaced by any later one.

        Raises:
            StoreError: if it cannot be written (a full disk, say); the store is then unchanged.
            ValueError: if it cannot be stored: a number that is not finite, an array of objects, text that is
                not valid Unicode.
        """
        bad = sorted(name for name, value in result.numbers.items() if not math.isfinite(value))
        if bad:
            raise ValueError(f"{cell}: {bad[0]} is {result.numbers[bad[0]]}; a stored number must be finite")
        values = (
            fingerprint,
            cell.study,
            cell.scale,
            cell.protocol,
            cell.kind,
            cell.arm,
            json.dumps(cell.condition),
            json.dumps(cell.hyper),
            cell.seed,
            cell.instance,
            result.status,
            json.dumps(result.numbers),
            json.dumps({name: [_finite(v) for v in values] for name, values in result.series.items()}),
            _packed(result.arrays),
            result.error,
            result.seconds,
            result.cpu_seconds,
            result.peak_memory,
            self._portable(result.path),
            _now(),
        )
        document = json.dumps(result.environment, sort_keys=True)
        with self._transaction():
            environment = self._environment(document)
            before = self._row(fingerprint)
            if before is None or before["status"] == "failed" or self._read(before) is None:
                self._connection.execute("DELETE FROM cells WHERE fingerprint = ?", (fingerprint,))
                self._connection.execute(_PUT, (*values, environment))
                self._add_checksums()
        # only now is the row, and with it the number, in the file
        self._environments[document] = environment

    def forget(self, fingerprint: str) -> None:
        """Drop the result of a cell, if there is one."""
        with self._transaction():
            self._connection.execute("DELETE FROM cells WHERE fingerprint = ?", (fingerprint,))

    def cells(self, study: str, scale: str | None = None) -> Iterator[tuple[str, Cell, CellResult]]:
        """Yield `(fingerprint, cell, result)` of all cells of a study, oldest first, stale ones too.

        Damaged cells are left out, with a warning.
        """
        wanted = "WHERE study = ? AND (? IS NULL OR scale = ?) AND cells.id > ? ORDER BY cells.id LIMIT ?"
        last = 0
        # page by page, so that no read transaction stays open while the caller does something else
        while True:
            with self._explained():
                page = self._connection.execute(
                    _SELECT + wanted, (study, scale, scale, last, _PAGE)
                ).fetchall()
            for row in page:
                if (read := self._read(row)) is not None:
                    yield row["fingerprint"], *read
            if len(page) < _PAGE:
                return
            last = page[-1]["id"]

    def studies(self) -> list[tuple[str, str]]:
        """Return the `(study, scale)` of everything stored, sorted."""
        with self._explained():
            rows = self._connection.execute("SELECT DISTINCT study, scale FROM cells ORDER BY study, scale")
            return [(row["study"], row["scale"]) for row in rows]

    def note_protocol(self, study: str, scale: str, protocol: int) -> None:
        """Record that this protocol was run, so that the ledger can count how many were tried."""
        with self._transaction():
            self._connection.execute(
                "INSERT OR IGNORE INTO protocols VALUES (?, ?, ?, ?)", (study, scale, protocol, _now())
            )

    def protocols(self, study: str, scale: str) -> list[int]:
        """Return the protocol numbers run so far, in increasing order."""
        with self._explained():
            rows = self._connection.execute(
                "SELECT protocol FROM protocols WHERE study = ? AND scale = ? ORDER BY protocol",
                (study, scale),
            )
            return [self._number(row["protocol"]) for row in rows]

    def note_run(
        self, study: str, scale: str, kind: str, name: str, seeds: int | None, device: str = "cpu"
    ) -> None:
        """Record the location of the study's code and the options of its last run, for the report."""
        with self._transaction():
            self._connection.execute(
                "INSERT OR REPLACE INTO runs (study, scale, kind, name, seeds, device) "
                "VALUES (?, ?, ?, ?, ?, ?)",
                (study, scale, kind, name, seeds, device),
            )

    def runs(self) -> list[dict[str, Any]]:
        """Return the last run of each study and scale: `study, scale, kind, name, seeds, device`."""
        with self._explained():
            rows = self._connection.execute("SELECT * FROM runs ORDER BY study, scale").fetchall()
        for row in rows:
            if row["seeds"] is not None:
                self._number(row["seeds"])
        return [dict(row) for row in rows]

    def close(self) -> None:
        """Close the file; a closed store cannot be used again."""
        self._connection.close()

    def __enter__(self) -> Store:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    # -- opening -------------------------------------------------------------------------------------------
    def _connect(self, database: str | Path, **options: Any) -> None:
        self._connection = sqlite3.connect(database, timeout=_BUSY_SECONDS, isolation_level=None, **options)
        self._connection.row_factory = sqlite3.Row
        self._connection.text_factory = _decoded

    def _connect_readonly(self) -> None:
        """Open the file for reading, even where SQLite cannot create the files that WAL mode needs.

        If those files do not exist, no process is writing, and the file can be read as immutable.
        """
        address = f"{self.path.as_uri()}?mode=ro"
        self._connect(address, uri=True)
        try:
            self._connection.execute("SELECT count(*) FROM sqlite_master")
        except sqlite3.OperationalError:
            self._connection.close()
            log = self.path.with_name(self.path.name + "-wal")
            if log.exists() and log.stat().st_size:
                raise StoreError(
                    f"{self.path} was not closed by its last run, and its folder cannot be written: copy it "
                    f"and {log.name} into another folder, and name that copy"
                ) from None
            self._connect(f"{address}&immutable=1", uri=True)

    def _prepare(self) -> None:
        """Check that the file is a store; create the tables of an empty one, and migrate an older one."""
        self._check_schema()
        # With NORMAL a killed process loses nothing, and a power cut at most the last cells.
        self._write_ahead()
        self._connection.execute("PRAGMA synchronous = NORMAL")
        # Also fails now, and not after an hour of cells, if the file cannot be written.
        with self._transaction():
            self._migrate()

    def _prepare_readonly(self) -> None:
        if self._check_schema() < SCHEMA:
            file = self._connection
            self._connect(":memory:")
            file.backup(self._connection)
            file.close()
            with self._transaction():
                self._migrate()
        self._connection.execute("PRAGMA query_only = 1")

    def _migrate(self) -> None:
        """Migrate the tables to this schema; another process may have done so since they were checked."""
        version = self._check_schema()
        if version < SCHEMA:
            for statement in (_TABLES if version == 0 else _MIGRATION).split(";"):
                self._connection.execute(statement)
            self._connection.execute(f"PRAGMA application_id = {_APPLICATION}")
            self._connection.execute(f"PRAGMA user_version = {SCHEMA}")
        self._add_checksums()

    def _write_ahead(self) -> None:
        """Switch the file to WAL. SQLite fails at once, without waiting, if another process is reading it."""
        deadline = time.monotonic() + _BUSY_SECONDS
        while True:
            try:
                self._connection.execute("PRAGMA journal_mode = WAL")
            except sqlite3.OperationalError as error:
                if not error.sqlite_errorname.startswith("SQLITE_BUSY") or time.monotonic() > deadline:
                    raise
                time.sleep(0.01)
            else:
                return

    def _check_schema(self) -> int:
        version = self._pragma("user_version")
        tables = self._connection.execute("SELECT count(*) FROM sqlite_master").fetchone()[0]
        if (tables or version) and self._pragma("application_id") != _APPLICATION:
            raise StoreError(f"{self.path} is an SQLite database of something else; name another file")
        if version > SCHEMA:
            raise StoreError(
                f"{self.path} was written by a newer trueup (schema {version}, this one reads {SCHEMA}): "
                "run `pip install --upgrade trueup`, or name another store"
            )
        return version

    def _pragma(self, name: str) -> int:
        return int(self._connection.execute(f"PRAGMA {name}").fetchone()[0])

    # -- rows ----------------------------------------------------------------------------------------------
    def _environment(self, document: str) -> int:
        """Return the number of an environment, which is stored once for all cells that share it."""
        if document not in self._environments:
            self._connection.execute("INSERT OR IGNORE INTO environments (document) VALUES (?)", (document,))
            row = self._connection.execute("SELECT id FROM environments WHERE document = ?", (document,))
            return int(row.fetchone()[0])
        return self._environments[document]

    def _portable(self, path: str) -> str:
        """Return the path of an artefact relative to its folder, so that a store can be moved."""
        here = path and Path(path).parent == self.artefacts
        return Path(path).name if here else path

    def _number(self, value: object) -> int:
        """Return a value that must be an integer, since SQLite does not check types."""
        if not isinstance(value, int):
            raise StoreError(f"{self.path}: {_advice('SQLITE_CORRUPT')}")
        return value

    def _row(self, fingerprint: str) -> sqlite3.Row | None:
        found = self._connection.execute(_SELECT + "WHERE fingerprint = ?", (fingerprint,)).fetchone()
        return cast("sqlite3.Row | None", found)

    def _add_checksums(self) -> None:
        """Add the checksum to rows that have none: new rows, and those of an older trueup."""
        rows = self._connection.execute("SELECT id FROM cells WHERE checksum = ''").fetchall()
        for (number,) in rows:
            row = self._connection.execute(_SELECT + "WHERE cells.id = ?", (number,)).fetchone()
            if row is not None:
                self._connection.execute(
                    "UPDATE cells SET checksum = ? WHERE id = ?", (_checksum(row), number)
                )

    def _read(self, row: sqlite3.Row) -> tuple[Cell, CellResult] | None:
        """Return the content of a row; `None`, with a warning, if it is damaged."""
        try:
            if row["checksum"] == _checksum(row):
                return _cell(row), self._result(row)
        except Exception:  # JSON, zipfile and NumPy may raise anything on damaged content
            pass
        if row["id"] not in self._warned:
            self._warned.add(row["id"])
            warnings.warn(
                f"{self.path}: the stored cell {row['study']} {row['scale']} {row['arm']} seed {row['seed']} "
                "is damaged and is not used: `trueup run` computes it again; if there are many, restore a "
                "copy of the file and check the disk",
                stacklevel=3,
            )
        return None

    def _result(self, row: sqlite3.Row) -> CellResult:
        series: Mapping[str, list[float | None]] = json.loads(row["series"])
        return CellResult(
            status=row["status"],
            numbers=json.loads(row["numbers"]),
            series={n: [math.nan if v is None else v for v in values] for n, values in series.items()},
            arrays=_unpacked(row["arrays"]),
            error=row["error"],
            seconds=row["seconds"],
            cpu_seconds=row["cpu_seconds"],
            peak_memory=row["peak_memory"],
            environment=json.loads(row["environment_document"]),
            path=str(self.artefacts / row["artefact"]) if row["artefact"] else "",
        )

    # -- errors --------------------------------------------------------------------------------------------
    @contextlib.contextmanager
    def _transaction(self) -> Iterator[None]:
        """Run a block as one transaction. It takes the write lock first, which may fail later."""
        with self._explained():
            self._connection.execute("BEGIN IMMEDIATE")
            try:
                yield
                self._connection.execute("COMMIT")
            except BaseException:
                if self._connection.in_transaction:  # SQLite itself rolls back on some errors
                    self._connection.execute("ROLLBACK")
                raise

    @contextlib.contextmanager
    def _explained(self) -> Iterator[None]:
        """Turn errors of SQLite and the file system into messages that say what to do."""
        try:
            yield
        except sqlite3.Error as error:
            name = getattr(error, "sqlite_errorname", "")
            raise StoreError(f"{self.path}: {_advice(name)} (SQLite: {error})") from error
        # SQLite's message may quote damaged bytes, and a damaged table may hold values of other types
        except (UnicodeDecodeError, TypeError, IndexError) as error:
            raise StoreError(f"{self.path}: {_advice('SQLITE_CORRUPT')}") from error
        except OSError as error:
            raise StoreError(f"cannot create or open {self.path}: {error.strerror or error}") from error


def _advice(name: str) -> str:
    """Say what an SQLite error means and how to fix it, by its name; extended names have a suffix."""
    meanings = {
        "SQLITE_FULL": "the disk is full; cells stored before are safe: free some space and run again",
        "SQLITE_IOERR": "the disk fails (is it full or gone?); cells stored before are safe: run again later",
        "SQLITE_READONLY": "cannot be written: fix its permissions and its folder's, or name another store",
        "SQLITE_CANTOPEN": "cannot be opened or created: fix the folder's permissions, or name another store",
        "SQLITE_NOTADB": "is not a store; name another file",
        "SQLITE_CORRUPT": "is damaged: restore a copy, or move it away and run again",
        "SQLITE_BUSY": f"another program has kept it locked for {_BUSY_SECONDS:.0f} s: end that one first",
    }
    return next(
        (text for prefix, text in meanings.items() if name.startswith(prefix)),
        "cannot be used: restore a copy, or move it away and run again",
    )


def _checksum(row: sqlite3.Row) -> str:
    """Return the sha256 of a row's content, whatever type damage has given to a value."""
    digest = hashlib.sha256()
    for name in (*_COLUMNS.split(", "), "environment_document"):
        value = row[name]
        content = value if isinstance(value, bytes) else str(value).encode("utf-8", "surrogateescape")
        digest.update(f"{name} {type(value).__name__} {len(content)} ".encode() + content)
    return digest.hexdigest()


def _decoded(text: bytes) -> str:
    """Decode text of any bytes: SQLite does not check its texts, and the checksum finds damage."""
    return text.decode("utf-8", "surrogateescape")


def _cell(row: sqlite3.Row) -> Cell:
    return Cell(
        study=row["study"],
        scale=row["scale"],
        protocol=row["protocol"],
        kind=row["kind"],
        arm=row["arm"],
        condition=_items(row["condition"]),
        hyper=_items(row["hyper"]),
        seed=row["seed"],
        instance=row["instance"],
    )


def _items(text: str) -> Items:
    return tuple((name, value) for name, value in json.loads(text))


def _finite(value: float) -> float | None:
    """Return None for NaN and infinities, which JSON lacks: a gap in a series is null."""
    return value if math.isfinite(value) else None


def _packed(arrays: Mapping[str, np.ndarray]) -> bytes | None:
    """Return `.npz` bytes: the names, then the arrays. Objects, which would need pickle, are refused."""
    if not arrays:
        return None
    stream = io.BytesIO()
    np.savez(stream, np.array(list(arrays)), *arrays.values(), allow_pickle=False)
    return stream.getvalue()


def _unpacked(data: bytes | None) -> dict[str, np.ndarray]:
    if data is None:
        return {}
    with np.load(io.BytesIO(data), allow_pickle=False) as loaded:
        return {str(name): loaded[f"arr_{i}"] for i, name in enumerate(loaded["arr_0"], start=1)}


def _now() -> str:
    return datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
