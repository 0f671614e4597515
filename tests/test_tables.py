"""Tables as people have them: encodings, delimiters, headers, Excel files."""

from __future__ import annotations

import datetime
from pathlib import Path

import pytest
from openpyxl import Workbook

from utils.errors import InputError
from utils.tables import read_table

ROWS = [["1", "右眼.png", "左 眼.png"], ["2", "b.png", "c.png"]]
WANTED = [dict(zip(("id", "fixed", "moving"), row, strict=True)) for row in ROWS]


def text_of(delimiter: str, header: tuple[str, ...] = ("id", "fixed", "moving")) -> str:
    return "".join(delimiter.join(row) + "\r\n" for row in (header, *ROWS))


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "gb18030", "utf-16"])
@pytest.mark.parametrize("delimiter", [",", ";", "\t"])
def test_every_encoding_and_delimiter_gives_the_same_rows(tmp_path, encoding, delimiter):
    path = tmp_path / "pairs.csv"
    path.write_bytes(text_of(delimiter).encode(encoding))
    assert read_table(path, ("fixed", "moving"), ("id",)) == (WANTED, ["id", "fixed", "moving"])


def test_the_header_may_have_any_case_and_further_columns_keep_theirs(tmp_path):
    path = tmp_path / "pairs.csv"
    path.write_text('Moving, FIXED ,Visit Date\na,b,"x;y\n1"\n,,\n', encoding="utf-8")
    rows, columns = read_table(path, ("fixed", "moving"), ("id",))
    assert columns == ["moving", "fixed", "Visit Date"]
    assert rows == [{"moving": "a", "fixed": "b", "Visit Date": "x;y\n1"}]


def test_an_excel_file(tmp_path):
    book = Workbook()
    book.active.append(["ID", "Fixed", "Moving", "day"])
    book.active.append([7.0, "右眼.png", "b.png", datetime.datetime(2024, 5, 1)])
    book.active.append([None, "c.png", "d.png"])
    book.save(tmp_path / "pairs.xlsx")
    rows, columns = read_table(tmp_path / "pairs.xlsx", ("fixed", "moving"), ("id",))
    assert columns == ["id", "fixed", "moving", "day"]
    assert rows == [
        {"id": "7", "fixed": "右眼.png", "moving": "b.png", "day": "2024-05-01"},
        {"id": "", "fixed": "c.png", "moving": "d.png", "day": ""},
    ]


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("a.csv", "fixed,moving\nMüller.png,Grün.png\n".encode("cp1252"), "UTF-8"),
        ("a.csv", b"fixed,moving\n\xff\xfe\xfd,b\n", "UTF-8"),
        ("a.csv", b"fixed,other\na,b\n", "column moving is missing"),
        ("a.csv", b"fixed,moving,Fixed\na,b,c\n", "column fixed occurs twice"),
        ("a.xlsx", b"PK\x03\x04 not a workbook", "not a readable table"),
        ("a.xls", b"\xd0\xcf\x11\xe0", "before 2007"),
    ],
)
def test_a_table_that_cannot_be_used_is_named_with_a_remedy(tmp_path, name, content, said):
    path = Path(tmp_path / name)
    path.write_bytes(content)
    with pytest.raises(InputError, match=said) as raised:
        read_table(path, ("fixed", "moving"))
    assert str(path) in str(raised.value)
