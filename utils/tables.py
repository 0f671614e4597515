"""Tables with paths of images, written by users: CSV of any usual kind, and Excel files.

A text table may be UTF-8 with or without byte order mark, UTF-16 with it, or GB18030 (what Excel
writes on a Chinese system); its columns may be divided by commas, semicolons or tabs. Names of
columns are compared without regard to case and blanks around them.
"""

from __future__ import annotations

import codecs
import csv
import io
import os
import zipfile
from collections.abc import Iterable, Iterator, Sequence
from datetime import date, datetime
from pathlib import Path

from utils.errors import InputError
from utils.stored_image import file_of

MAX_TABLE_BYTES = 256 << 20  # larger tables are refused
DELIMITERS = ",;\t"
EXCEL_SUFFIXES = (".xlsx", ".xlsm")
SAVE_AGAIN = "save it as CSV (UTF-8) or .xlsx"


def read_table(
    path: str | Path, required: Sequence[str], optional: Sequence[str] = ()
) -> tuple[list[dict[str, str]], list[str]]:
    """Read a table with a header.

    Args:
        path: of the table: CSV, or .xlsx (its first sheet).
        required: columns that it must have.
        optional: columns that are also found in any case, as the required ones are.

    Returns:
        One dict per row, "" where a row is short; and the names of the columns. Required and
        optional columns have the names given here, all others those of the table. Rows without any
        content are left out.

    Raises:
        InputError: missing or unreadable table, missing columns, or a column that occurs twice.
    """
    path = Path(path)
    _check_file(path)
    try:
        lines = _excel_rows(path) if path.suffix.lower() in EXCEL_SUFFIXES else _csv_rows(path)
        header = next(lines, [])
        rows = [row for row in lines if any(row)]
    # The last four are what openpyxl raises for a damaged file.
    except (OSError, csv.Error, zipfile.BadZipFile, KeyError, ValueError, SyntaxError) as error:
        raise _unreadable(path, error) from error
    columns = _known_names(header, [*required, *optional])
    missing = [name for name in required if name not in columns]
    if missing:
        raise InputError(
            f"{path}: column {', '.join(missing)} is missing; the header must be "
            f"{','.join(required)}[,...]."
        )
    twice = sorted({name for name in columns if name and columns.count(name) > 1})
    if twice:
        raise InputError(f"{path}: column {', '.join(twice)} occurs twice; rename one of them.")
    return [_row_of(columns, row) for row in rows], [name for name in columns if name]


def _check_file(path: Path) -> None:
    if not path.is_file():
        raise InputError(f"{path}: no such table of pairs.")
    if path.suffix.lower() == ".xls":
        raise InputError(f"{path}: an Excel file of before 2007 is not read; {SAVE_AGAIN}.")
    if path.stat().st_size > MAX_TABLE_BYTES:
        raise InputError(
            f"{path}: larger than {MAX_TABLE_BYTES >> 20} MB; divide the table of pairs."
        )


def _known_names(header: Iterable[str], known: Sequence[str]) -> list[str]:
    """The header, with the spelling of the known columns."""
    spelling = {name.casefold(): name for name in known}
    return [spelling.get(name.strip().casefold(), name.strip()) for name in header]


def _row_of(columns: Sequence[str], values: Sequence[str]) -> dict[str, str]:
    filled = [*values, *[""] * (len(columns) - len(values))]
    return {name: value for name, value in zip(columns, filled, strict=False) if name}


def _csv_rows(path: Path) -> Iterator[list[str]]:
    text = decode_table(path)
    return csv.reader(io.StringIO(text, newline=""), delimiter=delimiter_of(text))


def delimiter_of(text: str) -> str:
    """The character that divides the columns: the most frequent one of the header.

    Args:
        text: of the table.
    """
    header = text.lstrip("\r\n").splitlines()[:1] or [""]
    return max(DELIMITERS, key=header[0].count)


def decode_table(path: Path) -> str:
    """The text of a table.

    A table that is not UTF-8 is taken for GB18030 if that gives mostly characters of common Chinese
    (GB2312). Other 8-bit encodings cannot be told apart and are refused.

    Args:
        path: of the table.

    Raises:
        InputError: another encoding.
        OSError: unreadable file.
    """
    data = path.read_bytes()
    try:
        if data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
            return data.decode("utf-16")
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        try:
            text = data.decode("gb18030")
        except UnicodeDecodeError:
            raise _unreadable(path, error) from error
        foreign = [character for character in text if ord(character) > 127]
        if 2 * sum(_is_common_chinese(each) for each in foreign) < len(foreign):
            raise _unreadable(path, error) from error
        return text


def _is_common_chinese(character: str) -> bool:
    try:
        return bool(character.encode("gb2312"))
    except UnicodeEncodeError:
        return False


def _excel_rows(path: Path) -> Iterator[list[str]]:
    """The rows of the first sheet; formulas give their last computed value."""
    # Imported here because it takes a fifth of a second, and most tables are CSV.
    from openpyxl import load_workbook  # noqa: PLC0415
    from openpyxl.utils.exceptions import InvalidFileException  # noqa: PLC0415

    try:
        workbook = load_workbook(path, read_only=True, data_only=True)
    except InvalidFileException as error:
        raise ValueError(str(error)) from error
    try:
        sheet = workbook.worksheets[0]
        yield from ([_text(value) for value in row] for row in sheet.iter_rows(values_only=True))
    finally:
        workbook.close()


def _text(value: object) -> str:
    """The value of an Excel cell as text; a whole number has no decimal point."""
    if value is None:
        return ""
    if isinstance(value, float) and value.is_integer():
        return str(int(value))
    if isinstance(value, datetime) and value.time() == datetime.min.time():
        return value.date().isoformat()
    return value.isoformat() if isinstance(value, date) else str(value)


def _unreadable(path: Path, error: Exception) -> InputError:
    return InputError(
        f"{path}: not a readable table (CSV in UTF-8 or GB18030, or .xlsx): {error}; {SAVE_AGAIN}."
    )


def locate(value: str, table_folder: Path) -> str:
    """A path of a table, relative to its folder where it does not exist otherwise.

    Args:
        value: as the table has it.
        table_folder: folder of the table.
    """
    value = value.strip()
    in_table_folder = table_folder / value
    # os.path, unlike pathlib, treats an impossible name as a missing file, which is reported with
    # its row later.
    if value and not os.path.exists(file_of(value)) and os.path.exists(file_of(in_table_folder)):
        return str(in_table_folder)
    return value
