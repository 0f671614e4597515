"""Text logs of a run, one block per epoch."""

from __future__ import annotations

from pathlib import Path

from utils.files import write_text_atomically

HEADER = "== epoch "


class EpochLog:
    """A text log in blocks, one per epoch.

    Writing an epoch drops the blocks of that and of later epochs first, so a resumed run repeats nothing.
    """

    def __init__(self, path: Path) -> None:
        self.path = path

    def write(self, epoch: int, text: str) -> None:
        """Put the block of an epoch at the end of the log."""
        kept: list[str] = []
        if self.path.is_file():
            for line in self.path.read_text(encoding="utf-8").splitlines():
                if line.startswith(HEADER) and int(line[len(HEADER) :].split()[0]) >= epoch:
                    break
                kept.append(line)
        write_text_atomically(
            self.path, "\n".join([*kept, f"{HEADER}{epoch} ==", text.rstrip(), ""])
        )
