"""The journal of a batch: one line of JSON per finished row, appended at constant cost.

Every line ends with the CRC-32 of what is before it, so that a line that was cut by a stop, or that
a disk damaged, is recognised at any byte. A process that is killed loses no line that was appended;
a power failure loses at most those of the last ``FSYNC_SECONDS``.
"""

from __future__ import annotations

import json
import os
import time
import zlib
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple

JOURNAL_NAME = "journal.jsonl"
FSYNC_SECONDS = 1.0  # chosen by hand: a pair takes about as long, and a row costs microseconds
CHECKSUM = b',"crc":"%08x"}\n'
N_CHECKSUM = len(CHECKSUM % 0)


class Entry(NamedTuple):
    """One line of the journal.

    Attributes:
        offset: of its first byte in the file.
        content: of the line.
    """

    offset: int
    content: dict[str, Any]


def encode_line(content: dict[str, Any]) -> bytes:
    """A line of the journal.

    Args:
        content: plain values; not empty.
    """
    body = json.dumps(content, ensure_ascii=False, separators=(",", ":"))[:-1].encode(
        "utf-8", "surrogatepass"
    )
    return body + CHECKSUM % zlib.crc32(body)


def decode_line(line: bytes) -> dict[str, Any] | None:
    """The content of a line; None if it is incomplete or damaged.

    Args:
        line: with its end.
    """
    body = line[:-N_CHECKSUM]
    if line[-N_CHECKSUM:] != CHECKSUM % zlib.crc32(body):
        return None
    return json.loads(body.decode("utf-8", "surrogatepass") + "}")


class Journal:
    """A journal that is open for appending.

    Args:
        path: of the file; made if it is missing. An incomplete last line is cut off.

    Attributes:
        n_cut: 1 if an incomplete last line was cut off, else 0.
        n_damaged: number of damaged lines, known after :meth:`entries`.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.n_cut = self.n_damaged = 0
        # Without a buffer: what is written is out of this process, and a failure is not repeated.
        self._file = open(path, "ab", buffering=0)
        self._reader = open(path, "rb")
        self._end = self._cut_incomplete_end()
        self._synced_at = time.monotonic()

    def __enter__(self) -> Journal:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def _cut_incomplete_end(self) -> int:
        """Truncate the file after its last end of line; returns its length in bytes."""
        end = self._reader.seek(0, os.SEEK_END)
        position, block = end, b""
        while position > 0 and b"\n" not in block:
            start = max(0, position - (1 << 16))
            self._reader.seek(start)
            block = self._reader.read(position - start)
            position = start
        complete = position + block.rfind(b"\n") + 1
        if complete < end:
            self._file.truncate(complete)
            self.n_cut = 1
        return complete

    def entries(self) -> Iterator[Entry]:
        """All lines from the first to the last; damaged ones are counted and left out."""
        offset = self.n_damaged = 0
        with open(self.path, "rb") as file:
            for line in file:
                content = decode_line(line)
                if content is None:
                    self.n_damaged += 1
                else:
                    yield Entry(offset, content)
                offset += len(line)

    def at(self, offset: int) -> dict[str, Any]:
        """The content of the line that begins at an offset.

        Args:
            offset: of an :class:`Entry`, or returned by :meth:`append`.
        """
        self._reader.seek(offset)
        content = decode_line(self._reader.readline())
        assert content is not None, f"{self.path}: changed while it was in use"
        return content

    def append(self, content: dict[str, Any]) -> int:
        """Append a line; it survives the end of this process at once.

        Args:
            content: plain values.

        Returns:
            Its offset in the file.

        Raises:
            OSError: no space, or a failing disk.
        """
        line, offset = encode_line(content), self._end
        rest = memoryview(line)
        while rest:
            rest = rest[self._file.write(rest) :]
        self._end += len(line)
        if time.monotonic() - self._synced_at > FSYNC_SECONDS:
            self.sync()
        return offset

    def sync(self) -> None:
        """Force the lines onto the disk."""
        os.fsync(self._file.fileno())
        self._synced_at = time.monotonic()

    def close(self) -> None:
        """Force the lines onto the disk and close the file."""
        try:
            self.sync()
        finally:
            self._file.close()
            self._reader.close()
