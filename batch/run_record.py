"""``run.json``: weights, settings and versions of the rows of a folder, once for all of them."""

from __future__ import annotations

import hashlib
import json
import os
import platform
from dataclasses import asdict, dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from batch.work import RegistrationWork
from registration.pair_tables import PairToRegister
from utils.errors import InputError
from utils.files import write_text_atomically
from utils.stored_image import file_of
from utils.version import VERSION

RUN_NAME = "run.json"
FORMAT = "retinal-registration-run-1"
PACKAGES = ("torch", "numpy", "opencv-python-headless", "scipy", "kornia")
CONVENTION = (
    "h00 ... h22 of results.csv take pixels (x, y) of the fixed image to pixels of the moving "
    "image, pixel centres at integers, both images at their own size. Where the column matrix says "
    "'affine part', the transform is curved and stands whole in <id>/transform.json. Text cells "
    "that a spreadsheet would take for a formula have an apostrophe in front."
)


@dataclass(frozen=True)
class RunRecord:
    """What the rows of a folder have in common.

    Attributes:
        weights: path of the checkpoint.
        weights_sha256: its checksum.
        settings: that change a row or the files of a pair.
        versions: of the project, of Python and of the packages that compute; a list, since a run
            may be continued after an update.
    """

    weights: str
    weights_sha256: str
    settings: dict[str, Any]
    versions: list[dict[str, str]]

    @property
    def fingerprint(self) -> str:
        """Checksum of weights and settings."""
        return _checksum([self.weights_sha256, self.settings])

    def differences(self, other: RunRecord) -> list[str]:
        """What differs from another record, in words.

        Args:
            other: of the rows that exist.
        """
        found = [
            f"{name} {_shown(other.settings.get(name))} there, {_shown(value)} now"
            for name, value in self.settings.items()
            if other.settings.get(name) != value
        ]
        if self.weights_sha256 != other.weights_sha256:
            found.insert(0, f"weights {other.weights} there, {self.weights} now")
        return found

    def after(self, other: RunRecord) -> RunRecord:
        """This record with the versions of an earlier part of the run.

        Args:
            other: of the rows that exist.
        """
        later = [each for each in self.versions if each not in other.versions]
        return RunRecord(other.weights, self.weights_sha256, self.settings, other.versions + later)

    def write(self, out: Path) -> None:
        """Write ``run.json``.

        Args:
            out: folder of the results.
        """
        content = {"format": FORMAT, "convention": CONVENTION, **asdict(self)}
        text = json.dumps(content, indent=2, ensure_ascii=False) + "\n"
        write_text_atomically(out / RUN_NAME, text)


def record_of(work: RegistrationWork) -> RunRecord:
    """The record of a run that begins.

    Args:
        work: on the pairs.
    """
    settings = {
        "transform": work.transform,
        "img_size": work.img_size,
        "export": sorted(work.exports),
        "pictures": work.pictures,
    }
    packages = {name: _version_of(name) for name in PACKAGES}
    own = {"project": VERSION, "python": platform.python_version()}
    return RunRecord(work.weights, work.weights_sha256, settings, [own | packages])


def read_record(out: Path) -> RunRecord | None:
    """The record of a folder; None if there is none.

    Args:
        out: folder of the results.

    Raises:
        InputError: a file that is not such a record.
    """
    path = out / RUN_NAME
    if not path.exists():
        return None
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        if content["format"] != FORMAT:
            raise ValueError(f"format {content['format']}")
        names = ("weights", "weights_sha256", "settings", "versions")
        return RunRecord(*(content[name] for name in names))
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise InputError(
            f"{path}: not the record of a run ({error}); give another --out, or --overwrite."
        ) from error


def key_of(row: PairToRegister, run_fingerprint: str) -> str:
    """Checksum of all that a row depends on.

    Args:
        row: the pair; of its files path, size and time of change count.
        run_fingerprint: of weights and settings.
    """
    files = [[path, *_state_of(path)] for path in (row.fixed, row.moving)]
    return _checksum([row.id, files, run_fingerprint])[:32]


def _state_of(path: str) -> list[int]:
    """Size in bytes and time of change in ns; nothing for a file that cannot be found."""
    try:
        state = os.stat(file_of(path))
    except (OSError, ValueError):
        return []
    return [state.st_size, state.st_mtime_ns]


def _checksum(content: object) -> str:
    text = json.dumps(content, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()


def _version_of(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "not installed"


def _shown(value: object) -> str:
    if value is None:
        return "default"
    return " ".join(value) or "none" if isinstance(value, list) else str(value)
