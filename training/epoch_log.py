"""Text logs of a run, one block per epoch."""

from __future__ import annotations

from pathlib import Path

from loss.forms import term_and_form
from utils.files import write_text_atomically

HEADER = "== epoch "


class EpochLog:
    """A text log in blocks, one per epoch.

    Writing an epoch first drops the blocks of that and of later epochs, so a resumed run leaves no
    duplicates.

    Args:
        path: of the log.
    """

    def __init__(self, path: Path) -> None:
        self.path = path

    def write(self, epoch: int, text: str) -> None:
        """Append the block of an epoch.

        Args:
            epoch: number of the epoch.
            text: content of the block.
        """
        kept: list[str] = []
        if self.path.is_file():
            for line in self.path.read_text(encoding="utf-8").splitlines():
                if line.startswith(HEADER) and int(line[len(HEADER) :].split()[0]) >= epoch:
                    break
                kept.append(line)
        block = [f"{HEADER}{epoch} ==", text.rstrip(), ""]
        write_text_atomically(self.path, "\n".join([*kept, *block]))


def training_text(terms: dict[str, float], skipped: dict[int, str]) -> str:
    """The block of an epoch in ``train_log.txt``; "" without training.

    The terms of each form of sample are on a line of their own.

    Args:
        terms: figures of the training.
        skipped: error message of each unreadable sample, by its number.
    """
    if not terms:
        return ""
    lines: dict[str, list[str]] = {"": []}
    for figure, value in terms.items():
        form = term_and_form(figure)[1]
        lines.setdefault(form, [f"{form}:"] if form else []).append(f"{figure} {value:.5g}")
    figures = ["  ".join(words) for words in lines.values()]
    return "\n".join([*figures, *(f"skipped: {problem}" for _, problem in sorted(skipped.items()))])


def status_line(epoch: int, terms: dict[str, float], validated: dict[str, float]) -> str:
    """The line that the terminal shows after an epoch.

    Args:
        epoch: its number.
        terms: figures of the training; empty for epoch 0.
        validated: figures of the validation; empty without one.
    """
    figures = ({"loss": terms["total"]} if terms else {}) | validated
    return f"epoch {epoch}: " + ", ".join(f"{name} {value:.4g}" for name, value in figures.items())
