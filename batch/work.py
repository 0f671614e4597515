"""What a worker does: open the weights once, then register one pair after the other."""

from __future__ import annotations

import traceback
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import cv2
import torch

from batch.pair_folder import clear_pair
from geometry.curved_transforms import CURVED_KINDS
from registration.pair_tables import (
    AFFINE_PART,
    RESULT_COLUMNS,
    WHOLE_TRANSFORM,
    PairToRegister,
)
from registration.registrar import Registrar, Result
from utils.errors import InputError
from utils.files import sha256_of

Record = dict[str, object]  # a row of results.csv without the columns of the user


class Work(Protocol):
    """Work of a kind on pairs; it is sent to the workers, so it must be picklable."""

    def open(self) -> Callable[[PairToRegister], Record]:
        """Prepare a worker; called once in each. Returns the function that does one pair."""
        ...


@dataclass(frozen=True)
class RegistrationWork:
    """Registration of pairs with one set of weights.

    Attributes:
        weights: path of the checkpoint; on a cluster every machine has it there.
        weights_sha256: its checksum; a worker with another file refuses to start.
        transform, img_size, device: of the :class:`registration.registrar.Registrar`.
        out: folder of the results.
        exports: further files to write, keys of ``geometry.transform_files.EXPORTS``.
        pictures: that are written, one of ``registration.pair_outputs.PICTURES``.
        threads: number of threads of a worker; None leaves it to the libraries.
    """

    weights: str
    weights_sha256: str
    transform: str
    img_size: int | None
    device: str
    out: str
    exports: tuple[str, ...]
    pictures: str = "all"
    threads: int | None = 1

    def open(self) -> Callable[[PairToRegister], Record]:
        """Load the weights.

        Raises:
            InputError: weights that are missing or differ from those of the run.
        """
        if self.threads is not None:
            limit_threads(self.threads)
        registrar = Registrar(self.weights, self.transform, self.img_size, self.device)
        if sha256_of(self.weights) != self.weights_sha256:
            raise InputError(f"{self.weights}: differs from the weights of the run; copy it again.")

        def register(row: PairToRegister) -> Record:
            exports = list(self.exports)
            return register_row(row, registrar, Path(self.out), exports, self.pictures)

        return register


def limit_threads(count: int) -> None:
    """Let the numerical libraries of this process use so many threads.

    Args:
        count: of threads. With more workers than one, several threads a worker stall each other.
    """
    torch.set_num_threads(count)
    cv2.setNumThreads(count)


def register_row(
    row: PairToRegister,
    registrar: Registrar,
    out: Path,
    exports: list[str],
    pictures: str = "all",
) -> Record:
    """Register one pair and write its files. An error becomes the ``reason`` of the row.

    Args:
        row: the pair; its id is a plain name.
        registrar: that registers it.
        out: folder of the results.
        exports: further files to write.
        pictures: that are written, one of ``registration.pair_outputs.PICTURES``.

    Returns:
        The row of the table of results.
    """
    try:
        # Files of an earlier run must not remain if this one fails.
        clear_pair(out / row.id)
        result = registrar.register(row.fixed, row.moving)
        result.save(out / row.id, exports, pictures)
    except (InputError, OSError) as error:
        return failed_record(row, str(error))
    except Exception as error:
        # One failing pair must not abort the batch. This is a fault of the program, so that the
        # traceback is printed.
        traceback.print_exc()
        return failed_record(
            row, f"internal error, please report it: {type(error).__name__}: {error}"
        )
    return _record(row, result)


def failed_record(row: PairToRegister, reason: str) -> Record:
    """The row of a pair that was not registered.

    Args:
        row: the pair.
        reason: why.
    """
    return {
        **{name: "" for name in RESULT_COLUMNS},
        "id": row.id,
        "status": "failed",
        "reason": reason,
        "confidence": "0.000",
        "agreement": "0.000",
        "n_matches": 0,
        "n_inliers": 0,
        "seconds": "0.000",
        "fixed": row.fixed,
        "moving": row.moving,
    }


def _record(row: PairToRegister, result: Result) -> Record:
    record = failed_record(row, result.reason) | {
        "status": result.status,
        "confidence": f"{result.confidence:.3f}",
        "agreement": f"{result.agreement:.3f}",
        "n_matches": result.n_matches,
        "n_inliers": result.n_inliers,
        "seconds": f"{result.seconds:.3f}",
        "transform_reason": result.transform_reason,
    }
    if result.H_fix_to_mov is not None and result.transform is not None:
        record["transform"] = result.transform.kind
        record["matrix"] = AFFINE_PART if result.transform.kind in CURVED_KINDS else WHOLE_TRANSFORM
        for i in range(3):
            for j in range(3):
                record[f"h{i}{j}"] = repr(float(result.H_fix_to_mov[i, j]))
    return record
