"""Split of the eyes into train, validation and test: by shares, by folds, or as in another run.

Convention: an eye of a run on several data sets is named ``<folder of the data set>/<eye>``.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from utils.config import read_yaml
from utils.errors import InputError
from utils.files import write_text_atomically

PARTS = ("train", "val", "test")
REAL = "real"  # section of a manifest with the split of the real images
MIN_EYES = len(PARTS)  # each part needs at least one eye
MAX_NAMED_EYES = 5  # in a message
Split = dict[str, list[str]]  # eyes of each of PARTS


def split_by_eye(eyes: Sequence[str], shares: tuple[float, float], seed: int) -> Split:
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


def fold_by_eye(eyes: Sequence[str], fold: tuple[int, int], seed: int) -> Split:
    """One of K splits of a cross-validation; all samples of an eye go together.

    The shuffled eyes are dealt into K folds of equal size (to within one eye). Fold k is the
    validation part and the next fold (after K comes 1) the test part, so over k = 1 ... K each eye
    is validated on once and tested on once.

    Args:
        eyes: in any order, repeats allowed.
        fold: k, from 1 to K, and K, at least 3.
        seed: of the shuffle; the same eyes and seed give the same folds.

    Returns:
        Eyes of each part, sorted.

    Raises:
        InputError: an impossible fold, or fewer eyes than folds.
    """
    number, n_folds = fold
    check_fold(fold)
    unique = sorted(set(eyes))
    if len(unique) < n_folds:
        raise InputError(f"--fold {number}/{n_folds}: only {len(unique)} eyes; use fewer folds.")
    shuffled = [unique[i] for i in np.random.default_rng(seed).permutation(len(unique))]
    val, test = (sorted(shuffled[start % n_folds :: n_folds]) for start in (number - 1, number))
    return {
        "train": [eye for eye in unique if eye not in {*val, *test}],
        "val": val,
        "test": test,
    }


def check_fold(fold: tuple[int, int]) -> None:
    """Refuse impossible folds.

    Args:
        fold: k and K.

    Raises:
        InputError: K below 3, or k outside of 1 ... K.
    """
    number, n_folds = fold
    if n_folds < MIN_EYES or not 1 <= number <= n_folds:
        raise InputError(
            f"--fold {number}/{n_folds} (data.fold): must be k/K with K at least {MIN_EYES} and k "
            "from 1 to K."
        )


def split_as_in(
    path: str | Path, eyes: Collection[str], roots: Sequence[str]
) -> tuple[Split, list[str]]:
    """The split of another run, for the eyes that are there.

    Args:
        path: ``split.yaml`` of that run.
        eyes: of the data; each must be in the manifest.
        roots: folders of the data sets; a single one can be one of several of that run.

    Returns:
        Eyes of each part, without those that are not in ``eyes``; and these absent eyes, sorted.

    Raises:
        InputError: no manifest, an eye in two parts, an eye that is in no part, or no eye left to
            train or to validate on.
    """
    manifest = read_manifest(path)
    if len(roots) == 1:
        manifest = {part: eyes_in(manifest[part], roots[0]) for part in PARTS}
    counts = Counter(eye for part in PARTS for eye in set(manifest[part]))
    twice = [eye for eye, count in counts.items() if count > 1]
    if twice:
        raise InputError(f"{path}: {_named(twice)} in more than one part; correct the manifest.")
    unknown = set(eyes) - set(counts)
    if unknown:
        raise InputError(
            f"{path}: {_named(unknown)} of the data not in this split; add to its train, val or "
            "test part what that run did not train on, remove these folders from the data, or "
            "leave --split out."
        )
    split = {part: [eye for eye in manifest[part] if eye in eyes] for part in PARTS}
    for part in ("train", "val"):
        if not split[part]:
            raise InputError(f"{path}: none of its {part} eyes is in the data; check --data.")
    return split, sorted(set(counts) - set(eyes))


def _named(eyes: Collection[str]) -> str:
    """Some eyes and the verb that follows, for a message."""
    few = sorted(eyes)[:MAX_NAMED_EYES]
    more = f" and {len(eyes) - len(few)} more" if len(eyes) > len(few) else ""
    verb = "eye {} is" if len(eyes) == 1 else "eyes {} are"
    return verb.format(", ".join(few) + more)


def eyes_in(eyes: Sequence[str], root: str | Path) -> list[str]:
    """The eyes of a split that can be in a data set, as that data set names them.

    Args:
        eyes: of a part of a split, possibly of a run on several data sets.
        root: folder of one data set.
    """
    name = Path(root).resolve().name
    return [
        eye.rpartition("/")[2] for eye in eyes if "/" not in eye or eye.rpartition("/")[0] == name
    ]


def write_manifest(
    path: str | Path,
    roots: Sequence[str],
    seed: int | None,
    split: Split,
    real: Split | None = None,
) -> None:
    """Write the split, so that anyone can check that no eye is in two parts.

    Args:
        path: YAML file to write.
        roots: folders of the data sets.
        seed: of the split; None where it is that of another run.
        split: eyes of each part.
        real: eyes of the real images, ``<folder or table>/<eye>``; None without.
    """
    data = roots[0] if len(roots) == 1 else list(roots)
    content = {"data": data, "seed": seed, **split} | ({REAL: real} if real else {})
    write_text_atomically(path, yaml.safe_dump(content, sort_keys=False))


def read_manifest(path: str | Path) -> Split:
    """Read what :func:`write_manifest` wrote: eyes of train, val and test.

    Raises:
        InputError: missing file or missing parts.
    """
    content = _read_yaml_manifest(path)
    if not set(PARTS) <= set(content):
        raise InputError(f"{path}: not a split manifest (train, val and test expected).")
    return {part: [str(eye) for eye in content[part]] for part in PARTS}


def read_real_split(path: str | Path) -> Split | None:
    """The eyes of the real images in a manifest; None of a run without real images.

    Args:
        path: of the file.

    Raises:
        InputError: missing file or missing parts.
    """
    content = _read_yaml_manifest(path).get(REAL)
    if content is None:
        return None
    if not isinstance(content, dict) or not set(PARTS) <= set(content):
        raise InputError(f"{path}: {REAL}: not a split (train, val and test expected).")
    return {part: [str(eye) for eye in content[part]] for part in PARTS}


def _read_yaml_manifest(path: str | Path) -> dict[str, Any]:
    if not Path(path).is_file():
        raise InputError(
            f"{path}: no such split manifest; a training run writes split.yaml into its folder."
        )
    return read_yaml(path)
