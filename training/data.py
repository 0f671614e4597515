"""The images of a training run: generated views to train and validate on, real validation pairs."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dataset.generated_pairs import DataSettings, GeneratedPairs
from dataset.real_pairs import RealPair, describe_pairs, load_real_pairs
from dataset.samples import Sample, discover_samples
from dataset.split import split_by_eye
from dataset.views import ViewGeometry
from training.arguments import RECORDED_ARGUMENTS
from training.run_config import RunConfig
from training.run_folder import Run
from utils.config import to_plain
from utils.errors import InputError

MAX_LISTED = 5  # folders without all files of a mode that are named in the log


@dataclass(frozen=True)
class TrainingData:
    """The images of a run.

    Attributes:
        train: views of the training eyes.
        val: whole-image views of the validation eyes.
        real: landmark pairs of ``--val_data``; may be empty.
        split: eyes of "train", "val" and "test".
        record: everything that a resumed run must agree with; a checkpoint holds it as ``config``.
    """

    train: GeneratedPairs
    val: GeneratedPairs
    real: list[RealPair]
    split: dict[str, list[str]]
    record: dict[str, Any]


@dataclass(frozen=True)
class ViewDraw:
    """What training views are drawn with, besides their geometry.

    Attributes:
        data: cache size and ranges of the photometric randomisation.
        seed: of the views.
        junction_sigma_px: standard deviation of a junction in the label heatmaps, pixels.
    """

    data: DataSettings
    seed: int
    junction_sigma_px: float


def prepare_data(
    run: Run,
    root: str,
    args: argparse.Namespace,
    config: RunConfig,
    draw: ViewDraw,
    log: Callable[[str], None],
) -> TrainingData:
    """Find the samples, split them by eye, and read the real validation pairs.

    Args:
        run: new, or resumed: then the data must be those that it began with.
        root: folder of the generated data.
        args: after :func:`training.arguments.resolve_arguments`.
        config: of the run.
        draw: appearance and seed of the training views.
        log: prints a line.

    Raises:
        InputError: unusable data; the message names the file.
    """
    samples, split = find_samples(root, args.mode, config, log)
    record = {
        "settings": to_plain(config),
        "data": str(root),
        "mode": list(args.mode),
        "split": split,
        "files": {sample.key: sample.n_bytes for sample in samples},
    }
    record |= {name: getattr(args, name) for name in RECORDED_ARGUMENTS}
    if run.saved is not None:
        check_same_data(run.saved, record, run.checkpoint)
    train, val = make_views(samples, split, config, draw)
    real = find_real_pairs(args.val_data, args.fixed_role, log)
    return TrainingData(train=train, val=val, real=real, split=split, record=record)


def find_samples(
    root: str, modes: list[str], config: RunConfig, log: Callable[[str], None]
) -> tuple[list[Sample], dict[str, list[str]]]:
    """All samples, and the eyes of "train", "val" and "test".

    Args:
        root: folder of the generated data.
        modes: kinds of pairs, keys of ``dataset.samples.MODE_FILES``.
        config: holds the shares of the split and its seed.
        log: prints a line.

    Raises:
        InputError: no usable sample, or too few eyes.
    """
    samples, lacking = discover_samples(root, modes)
    for line in lacking[:MAX_LISTED]:
        log(f"left out: {line}")
    if len(lacking) > MAX_LISTED:
        log(f"left out: {len(lacking) - MAX_LISTED} more samples that lack a file")
    eyes = [sample.eye for sample in samples]
    return samples, split_by_eye(eyes, config.data.val_test_share, config.seed)


def make_views(
    samples: list[Sample], split: dict[str, list[str]], config: RunConfig, draw: ViewDraw
) -> tuple[GeneratedPairs, GeneratedPairs]:
    """Training views (crops) and validation views (whole images).

    Args:
        samples: of all eyes.
        split: eyes of "train" and "val".
        config: geometry of the views, settings of the validation.
        draw: appearance and seed of the training views.
    """

    def part(name: str) -> list[Sample]:
        return [sample for sample in samples if sample.eye in set(split[name])]

    sigma, cache_mb = draw.junction_sigma_px, config.data.cache_mb
    ranges = draw.data.used_ranges()
    train = GeneratedPairs(part("train"), config.view, ranges, draw.seed, sigma, cache_mb)
    checks = config.validation
    whole = ViewGeometry(
        img_size=None,
        long_side=config.match.long_side,
        rotation_deg=checks.rotation_deg,
        scale=checks.scale,
        translation=checks.translation,
        shear=0.0,
        mirror=False,
    )
    # Sorted by eye, not by mode, so that the first views of a validation contain every mode.
    val = sorted(part("val"), key=lambda sample: split["val"].index(sample.eye))
    return train, GeneratedPairs(val, whole, None, checks.seed, sigma, cache_mb)


def find_real_pairs(
    folders: list[str], fixed_role: str, log: Callable[[str], None]
) -> list[RealPair]:
    """Landmark pairs of all folders; each folder's name becomes part of its pairs' keys.

    Args:
        folders: of real pairs, in a layout of ``dataset.real_pairs``.
        fixed_role: "01" or "02", the fixed image of the numbered layout.
        log: prints a line.

    Raises:
        InputError: an unusable pair, or two folders of the same name.
    """
    real: list[RealPair] = []
    for folder in folders:
        pairs = load_real_pairs(folder, Path(folder).resolve().name, fixed_role=fixed_role)
        log(describe_pairs(folder, pairs))
        if {pair.key for pair in pairs} & {pair.key for pair in real}:
            raise InputError(
                f"--val_data {folder}: another folder of the same name is given too; rename one."
            )
        real += pairs
    return real


def check_same_data(saved: dict[str, Any], record: dict[str, Any], checkpoint: Path | None) -> None:
    """Refuse to resume on other data than the run began with.

    Args:
        saved: ``record`` of the resumed run; ``files`` holds the size in bytes of each sample.
        record: of the data found now.
        checkpoint: named in the message.

    Raises:
        InputError: other samples, another split or other modes.
    """
    before, now = saved.get("files", record["files"]), record["files"]
    changed = sorted(key for key in set(before) | set(now) if before.get(key) != now.get(key))
    if changed or saved["split"] != record["split"] or saved["mode"] != record["mode"]:
        named = f" (for example {', '.join(changed[:3])})" if changed else ""
        raise InputError(
            f"{record['data']}: eyes, files{named} or --mode are not those of the run in "
            f"{checkpoint}; resume with the same data, or start a new run from its weights with "
            "--pretrained."
        )
