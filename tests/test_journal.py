"""The journal of a batch: a stop at any byte, damaged lines, constant cost."""

from __future__ import annotations

import pytest

from batch.journal import Journal, decode_line, encode_line

ROWS = [{"id": "a", "reason": "眼 \n \ud800"}, {"id": "b", "n": 1.5}, {"id": "c", "x": {"y": ""}}]


def rows_of(path) -> list[dict]:
    with Journal(path) as journal:
        return [entry.content for entry in journal.entries()]


def test_rows_are_read_back_in_order_and_by_offset(tmp_path):
    with Journal(tmp_path / "j") as journal:
        offsets = [journal.append(row) for row in ROWS]
        assert journal.at(offsets[1]) == ROWS[1]
        offsets.append(journal.append(ROWS[0]))
    with Journal(tmp_path / "j") as journal:
        assert [entry.offset for entry in journal.entries()] == offsets
        assert journal.at(offsets[2]) == ROWS[2] and journal.n_cut == journal.n_damaged == 0
    assert rows_of(tmp_path / "j") == [*ROWS, ROWS[0]]


def test_a_stop_at_any_byte_loses_the_last_row_only(tmp_path):
    lines = [encode_line(row) for row in ROWS]
    whole = b"".join(lines)
    for size in range(len(whole) + 1):
        path = tmp_path / "j"
        path.write_bytes(whole[:size])
        n_complete = sum(size >= len(b"".join(lines[: i + 1])) for i in range(len(lines)))
        with Journal(path) as journal:
            assert [entry.content for entry in journal.entries()] == ROWS[:n_complete]
            assert journal.n_cut == (whole[:size] != b"".join(lines[:n_complete]))
            journal.append({"id": "next"})
        assert rows_of(path) == [*ROWS[:n_complete], {"id": "next"}]


def test_a_cut_line_that_is_longer_than_a_block(tmp_path):
    line = encode_line({"id": "long", "text": "x" * 200_000})
    (tmp_path / "j").write_bytes(encode_line(ROWS[0]) + line[:-1])
    assert rows_of(tmp_path / "j") == ROWS[:1]


@pytest.mark.parametrize("position", [0, 3, 30, -2])
def test_a_damaged_line_is_left_out_and_counted(tmp_path, position):
    lines = [bytearray(encode_line(row)) for row in ROWS]
    lines[1][position] ^= 1
    (tmp_path / "j").write_bytes(b"".join(lines))
    with Journal(tmp_path / "j") as journal:
        assert [entry.content for entry in journal.entries()] == [ROWS[0], ROWS[2]]
        assert journal.n_damaged == 1


def test_an_undamaged_line_has_its_content(tmp_path):
    assert decode_line(encode_line(ROWS[1])) == ROWS[1]
    assert decode_line(b"\n") is None and decode_line(b"") is None
