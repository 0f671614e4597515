"""``results.csv`` and ``results.parquet``, made from the journal."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

from batch.folder import PARQUET_NAME
from registration.pair_tables import (
    MATRIX_COLUMNS,
    RESULT_COLUMNS,
    RESULTS_NAME,
    write_results,
)
from utils.files import replace_atomically

try:
    import pyarrow
    import pyarrow.parquet
except ImportError:
    pyarrow = None

log = logging.getLogger("batch")
NUMBERS = ("confidence", "agreement", "seconds", *MATRIX_COLUMNS)
COUNTS = ("n_matches", "n_inliers")
ROWS_AT_ONCE = 10_000  # held in memory while the file is written


def write_tables(out: Path, records: Iterable[Mapping[str, object]], extra: Sequence[str]) -> None:
    """Write ``results.csv`` and, where pyarrow is installed, ``results.parquet``; each atomically.

    Args:
        out: folder of the results.
        records: rows with keys of ``RESULT_COLUMNS`` and ``extra``.
        extra: further columns, as text.
    """
    if pyarrow is None:
        # An older file would not agree with results.csv.
        (out / PARQUET_NAME).unlink(missing_ok=True)
        log.info("results.parquet is not written: it needs requirements-cluster.txt")
        write_results(out / RESULTS_NAME, records, extra)
        return
    schema = pyarrow.schema([(name, _type_of(name)) for name in (*RESULT_COLUMNS, *extra)])
    with (
        replace_atomically(out / PARQUET_NAME) as temporary,
        pyarrow.parquet.ParquetWriter(temporary, schema) as writer,
    ):
        write_results(out / RESULTS_NAME, _also_into(writer, records, schema), extra)


def _also_into(
    writer: Any, records: Iterable[Mapping[str, object]], schema: Any
) -> Iterator[Mapping[str, object]]:
    """The records, each of which is also written to a Parquet file."""
    rows = iter(records)
    while some := list(islice(rows, ROWS_AT_ONCE)):
        columns = {
            name: [_value(name, record.get(name, "")) for record in some] for name in schema.names
        }
        writer.write_table(pyarrow.table(columns, schema))
        yield from some


def _type_of(name: str) -> object:
    if name in NUMBERS:
        return pyarrow.float64()
    return pyarrow.int64() if name in COUNTS else pyarrow.string()


def _value(name: str, value: object) -> object:
    """A cell; numbers that are missing are null, text never is."""
    if name in NUMBERS or name in COUNTS:
        return None if value == "" else (float if name in NUMBERS else int)(str(value))
    return str(value).encode("utf-8", "replace").decode()
