"""The real images of a training run: split by eye, as training samples, and as validation pairs."""

from __future__ import annotations

import argparse
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from dataset.real_items import RealItem, find_real_items
from dataset.real_pairs import RealPair, load_pair
from dataset.split import MIN_EYES, PARTS, Split, fold_by_eye, read_real_split, split_by_eye
from dataset.teaching_samples import (
    TeachingSample,
    landmark_sample,
    registered_sample,
    self_samples,
)
from dataset.view_sources import LANDMARKS, REGISTERED, SELF
from training.run_config import RunConfig
from training.run_folder import Run
from utils.errors import InputError

SPLIT, FILES = "real_split", "real_files"  # entries of the record of a run


@dataclass(frozen=True)
class RealData:
    """The real images of a run; all empty without ``--real``.

    Attributes:
        samples: of the training eyes, in every form that the settings ask for.
        val: landmark pairs of the validation eyes.
        split: eyes of "train", "val" and "test"; None without real images.
        root_weight: share of each root by name; empty for even shares.
        record: what a resumed run must agree with.
    """

    samples: list[TeachingSample] = field(default_factory=list)
    val: list[RealPair] = field(default_factory=list)
    split: Split | None = None
    root_weight: dict[str, float] = field(default_factory=dict)
    record: dict[str, Any] = field(default_factory=dict)


def prepare_real(
    run: Run, args: argparse.Namespace, config: RunConfig, log: Callable[[str], None]
) -> RealData:
    """Find the images of ``--real``, split them by eye, and fit transforms through landmarks.

    Only eyes with landmarks can be validated or tested on; the others all train.

    Args:
        run: new or resumed.
        args: after :func:`training.arguments.resolve_arguments`.
        config: of the run.
        log: prints a line.

    Raises:
        InputError: unusable images or landmarks, weights that do not fit, or a resumed run whose
            files changed; the message names them.
    """
    if not args.real:
        return RealData()
    by_root = _find_items(args)
    items = [item for found in by_root.values() for item in found]
    split = _find_split(run, by_root, args, config)
    train, val = set(split["train"]), set(split["val"])
    samples: list[TeachingSample] = []
    for item in items:
        if item.eye in train:
            samples += _samples_of(item, config, log)
    if not samples:
        raise InputError(
            f"--real {' '.join(map(str, args.real))}: no image can teach as "
            f"{', '.join(config.real.forms)}; change --real_forms, or add images."
        )
    pairs = [load_pair(i.landmarks, i.root) for i in items if i.landmarks and i.eye in val]
    forms = Counter(sample.form for sample in samples)
    listed = ", ".join(f"{count} {form}" for form, count in forms.items())
    counts = {part: len(split[part]) for part in PARTS}
    log(f"real images: {counts} eyes; samples: {listed}; {len(pairs)} validation pairs")
    record = {SPLIT: split, FILES: {item.key: item.n_bytes for item in items}}
    _check_same_files(run, record)
    return RealData(samples, pairs, split, _root_weights(args, list(by_root)), record)


def _find_items(args: argparse.Namespace) -> dict[str, list[RealItem]]:
    """The items of each root, by its name."""
    by_root: dict[str, list[RealItem]] = {}
    validated = {Path(root).resolve() for root in args.val_data}
    for root in args.real:
        items = find_real_items(root, args.fixed_role, args.part)
        if items[0].root in by_root:
            raise InputError(f"--real {root}: another root has the same name; rename one.")
        if Path(root).resolve() in validated:
            raise InputError(
                f"--real {root}: is in --val_data too, so it would be trained and validated on; "
                "leave it out of one: --real keeps validation eyes apart by itself."
            )
        by_root[items[0].root] = items
    return by_root


def _find_split(
    run: Run,
    by_root: dict[str, list[RealItem]],
    args: argparse.Namespace,
    config: RunConfig,
) -> Split:
    """The eyes of each part: those of the resumed run, of ``--split``, or drawn for each root.

    The manifest of a run without real images says nothing about them, so theirs is drawn.
    """
    if run.saved is not None:
        return {part: list(eyes) for part, eyes in run.saved[SPLIT].items()}
    every = sorted({item.eye for items in by_root.values() for item in items})
    given = read_real_split(args.split_file) if args.split_file else None
    if given is not None:
        lacking = sorted(set(every) - {eye for eyes in given.values() for eye in eyes})
        if lacking:
            raise InputError(
                f"{args.split_file}: real eye {lacking[0]} is in no part of its section `real`."
            )
        return {part: [eye for eye in given[part] if eye in every] for part in PARTS}
    data = config.data
    split: Split = {part: [] for part in PARTS}
    for items in by_root.values():
        marked = sorted({item.eye for item in items if item.landmarks})
        own: Split = {"train": marked, "val": [], "test": []}
        if data.fold is not None and len(marked) >= data.fold[1]:
            own = fold_by_eye(marked, data.fold, data.split_seed)
        elif len(marked) >= MIN_EYES:
            own = split_by_eye(marked, data.val_test_share, data.split_seed)
        split["train"] += sorted({item.eye for item in items} - set(marked))
        for part in PARTS:
            split[part] += own[part]
    return split


def _samples_of(
    item: RealItem, config: RunConfig, log: Callable[[str], None]
) -> list[TeachingSample]:
    """The samples of an item in every form that it allows and the settings ask for."""
    real, samples = config.real, []
    if LANDMARKS in real.forms and item.landmarks is not None:
        sample, fit = landmark_sample(item, real.weak_junctions, real.min_tolerance_px)
        log(f"{item.key}: residual {fit.residual_px:.1f} px at 512; {fit.reason}")
        samples.append(sample)
    if REGISTERED in real.forms and item.is_pair:
        samples.append(registered_sample(item, real.weak_junctions))
    if SELF in real.forms:
        samples += self_samples(item, real.weak_junctions)
    return samples


def _root_weights(args: argparse.Namespace, names: Sequence[str]) -> dict[str, float]:
    """``--real_weight`` by name of the root."""
    weights = args.real_weight
    if weights and (len(weights) != len(names) or not all(0 < w < float("inf") for w in weights)):
        raise InputError(
            f"--real_weight {' '.join(f'{weight:g}' for weight in weights)}: give one weight above "
            f"0 for each of {', '.join(names)}."
        )
    return dict(zip(names, weights, strict=True)) if weights else {}


def _check_same_files(run: Run, record: dict[str, Any]) -> None:
    """Refuse to resume with other real images than the run began with."""
    if run.saved is None:
        return
    before, now = run.saved[FILES], record[FILES]
    changed = sorted(key for key in {*before, *now} if before.get(key) != now.get(key))
    if changed:
        raise InputError(
            f"--real: {', '.join(changed[:3])} changed since the run in {run.checkpoint} began; "
            "restore the files, or start a new run from its weights with --pretrained."
        )
