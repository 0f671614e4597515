"""``results.csv`` and ``results.parquet``, made from the journal."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from itertools import islice
from pathlib import Path

from batch.folder import PARQUET_NAME
from registration.pair_tables import MATRIX_COLUMNS, RESULT_COLUMNS
from utils.files import replace_atomically

try:
    import pyarrow
    import pyarrow.parquet
except ImportError:
    pyarrow = None

NUMBERS = ("confidence", "agreement", "seconds", *MATRIX_COLUMNS)
COUNTS = ("n_matches", "n_inliers")
ROWS_AT_ONCE = 10_000  # held in memory while the file is written


def write_parquet(out: Path, records: Iterable[Mapping[str, object]], extra: Sequence[str]) -> bool:
    """Write ``results.parquet`` atomically, with numbers as numbers.

    Args:
        out: folder of the results.
        records: rows with keys of ``RESULT_COLUMNS`` and ``extra``.
        extra: further columns, as text.

    Returns:
        False if pyarrow (requirements-cluster.txt) is not installed; then an older file is removed,
        since it would not agree with ``results.csv``.
    """
    path = out / PARQUET_NAME
    if pyarrow is None:
        path.unlink(missing_ok=True)
        return False
    schema = pyarrow.schema([(name, _type_of(name)) for name in (*RESULT_COLUMNS, *extra)])
    with (
        replace_atomically(path) as temporary,
        pyarrow.parquet.ParquetWriter(temporary, schema) as writer,
    ):
        rows = iter(records)
        while some := list(islice(rows, ROWS_AT_ONCE)):
            columns = {
                name: [_value(name, record.get(name, "")) for record in some]
                for name in schema.names
            }
            writer.write_table(pyarrow.table(columns, schema))
    return True


def _type_of(name: str) -> object:
    if name in NUMBERS:
        return pyarrow.float64()
    return pyarrow.int64() if name in COUNTS else pyarrow.string()


def _value(name: str, value: object) -> object:
    """A cell; numbers that are missing are null, text never is."""
    if name in NUMBERS or name in COUNTS:
        return None if value == "" else (float if name in NUMBERS else int)(str(value))
    return str(value).encode("utf-8", "replace").decode()
