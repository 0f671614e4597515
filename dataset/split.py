"""Which eyes train, validate and test."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import yaml

from utils.config import read_yaml
from utils.errors import InputError
from utils.files import write_text_atomically


def split_by_eye(eyes: list[str], shares: tuple[float, float], seed: int) -> dict[str, list[str]]:
    """Divide eyes into train, val and test; all samples of an eye go together.

    Args:
        eyes: any order, repeats allowed.
        shares: shares of val and test; each gets at least one eye.
        seed: of the shuffle; the same eyes and seed give the same split.

    Raises:
        InputError: fewer than three eyes.
    """
    unique = sorted(set(eyes))
    if len(unique) < 3:
        raise InputError(f"only {len(unique)} eyes; train, val and test need at least one each.")
    order = np.random.default_rng(seed).permutation(len(unique))
    n_val, n_test = (max(1, round(share * len(unique))) for share in shares)
    if n_val + n_test >= len(unique):
        raise InputError(
            f"{len(unique)} eyes cannot give shares of {shares} to val and test; lower data.val_test_share."
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
    """Write which eyes train, validate and test, so that anyone can check that no eye is on two sides."""
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
    if not {"train", "val", "test"} <= set(content):
        raise InputError(f"{path}: not a split manifest (train, val and test expected).")
    return {part: [str(eye) for eye in content[part]] for part in ("train", "val", "test")}
