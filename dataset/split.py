"""Split of the eyes into train, validation and test."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import yaml

from utils.config import read_yaml
from utils.errors import InputError
from utils.files import write_text_atomically

PARTS = ("train", "val", "test")
MIN_EYES = len(PARTS)  # each part needs at least one eye


def split_by_eye(
    eyes: Sequence[str], shares: tuple[float, float], seed: int
) -> dict[str, list[str]]:
    """Divide eyes into train, val and test; all samples of an eye go together.

    Args:
        eyes: in any order, repeats allowed.
        shares: shares of the eyes for val and test; each gets at least one eye.
        seed: of the shuffle; the same eyes and seed give the same split.

    Returns:
        Eyes of each part, sorted.

    Raises:
        InputError: fewer than three eyes, or shares that leave no eye for training.
    """
    unique = sorted(set(eyes))
    if len(unique) < MIN_EYES:
        raise InputError(f"only {len(unique)} eyes; train, val and test need at least one each.")
    order = np.random.default_rng(seed).permutation(len(unique))
    n_val, n_test = (max(1, round(share * len(unique))) for share in shares)
    if n_val + n_test >= len(unique):
        raise InputError(
            f"{len(unique)} eyes cannot give shares of {shares} to val and test; lower "
            "data.val_test_share."
        )
    shuffled = [unique[i] for i in order]
    return {
        "train": sorted(shuffled[n_val + n_test :]),
        "val": sorted(shuffled[:n_val]),
        "test": sorted(shuffled[n_val : n_val + n_test]),
    }


def write_manifest(
    path: str | Path, root: str | Path, seed: int, split: dict[str, list[str]]
) -> None:
    """Write the split, so that anyone can check that no eye is in two parts.

    Args:
        path: YAML file to write.
        root: folder of the data set.
        seed: of the split.
        split: from :func:`split_by_eye`.
    """
    write_text_atomically(
        path, yaml.safe_dump({"data": str(root), "seed": seed, **split}, sort_keys=False)
    )


def read_manifest(path: str | Path) -> dict[str, list[str]]:
    """Read what :func:`write_manifest` wrote: eyes of train, val and test.

    Raises:
        InputError: missing file or missing parts.
    """
    path = Path(path)
    if not path.is_file():
        raise InputError(
            f"{path}: no such split manifest; a training run writes split.yaml into its folder."
        )
    content = read_yaml(path)
    if not set(PARTS) <= set(content):
        raise InputError(f"{path}: not a split manifest (train, val and test expected).")
    return {part: [str(eye) for eye in content[part]] for part in PARTS}
