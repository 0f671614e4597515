"""Set up a training run: arguments, config, resume checks and data, the same for every training script."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from dataset.generated_pairs import GeneratedPairs
from dataset.real_pairs import RealPair, describe_pairs, load_real_pairs
from dataset.samples import MODE_FILES, Sample, discover_samples
from dataset.split import split_by_eye
from dataset.views import ViewGeometry
from training.joint_step import DEFAULT_CONFIG, JointConfig
from training.processes import PRECISIONS
from training.settings import TrainSettings
from utils.device import DEVICES
from utils.errors import InputError

DEFAULT_DATA = "data/generated"
# Arguments that define a run besides its settings, with their defaults; they are kept in the checkpoint.
RECORDED_ARGUMENTS = {"val_data": [], "fixed_role": "01", "precision": "32", "overfit": False}


def get_args_parser(
    description: str | None = __doc__, default_config: str = DEFAULT_CONFIG
) -> argparse.ArgumentParser:
    """Arguments that all training scripts share; those left out keep the config's value."""
    parser = argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--mode", nargs="+", default=["cffa"], choices=list(MODE_FILES), help="kinds of pairs"
    )
    parser.add_argument("--name", default="e2e", help="name of the run")
    parser.add_argument("--config", help=f"settings (default: {default_config})")
    parser.add_argument(
        "--data", help=f"generated data, see README, 'Your own data' (default: {DEFAULT_DATA})"
    )
    parser.add_argument(
        "--val_data", nargs="+", help="folders of real landmark pairs, validated every epoch"
    )
    parser.add_argument(
        "--fixed_role", choices=("01", "02"), help="fixed image of --val_data (default: 01)"
    )
    parser.add_argument("--save", default="save", help="folder of all runs")
    parser.add_argument("--epoch", type=int, help="number of epochs")
    parser.add_argument("--batch_size", type=int, help="pairs per step, over all processes")
    parser.add_argument(
        "--accumulate", type=int, help="compute a batch in so many parts, to save memory"
    )
    parser.add_argument("--img_size", type=int, help="side of the square training views, pixels")
    parser.add_argument("--lr", type=float, help="largest learning rate")
    parser.add_argument(
        "--rotation", type=float, help="largest rotation of the moving image, degrees; 180 = any"
    )
    parser.add_argument("--views_per_sample", type=int, help="views of each sample per epoch")
    parser.add_argument("--workers", type=int, help="data loading processes")
    parser.add_argument("--seed", type=int, help="of weights, split and views")
    parser.add_argument("--device", default="auto", choices=DEVICES)
    parser.add_argument(
        "--precision",
        choices=list(PRECISIONS),
        help="fp16 scales its loss, and needs a GPU (default: 32)",
    )
    parser.add_argument(
        "--pretrained",
        metavar="FILE",
        help="start from these weights (ours, or published ones; see README)",
    )
    parser.add_argument(
        "--resume",
        nargs="?",
        const="latest",
        metavar="FILE",
        help="continue a run: from its newest good checkpoint, or FILE",
    )
    parser.add_argument(
        "--overfit",
        action="store_true",
        default=None,
        help="train on one batch only, to see that it can learn",
    )
    parser.add_argument("--profile", action="store_true", help="print where the time goes")
    return parser


def resolve_arguments(args: argparse.Namespace, saved: dict | None) -> None:
    """Fill in those arguments of a run that are no settings; a resumed run keeps its own.

    Raises:
        InputError: an argument that differs from the run that is resumed.
    """
    for name, default in RECORDED_ARGUMENTS.items():
        was = saved.get(name, default) if saved else default
        if saved and getattr(args, name) not in (None, was):
            raise InputError(
                f"--resume continues a run as it was, but --{name} was {was}. Leave it out."
            )
        if getattr(args, name) is None:
            setattr(args, name, was)


def given(**values: object) -> dict:
    """The arguments that were given."""
    return {name: value for name, value in values.items() if value is not None}


def override_train(train: TrainSettings, args: argparse.Namespace) -> TrainSettings:
    """Settings of the loop with the arguments on top of them."""
    return replace(
        train,
        **given(
            epochs=args.epoch,
            batch_size=args.batch_size,
            lr=args.lr,
            workers=args.workers,
            accumulate=args.accumulate,
            views_per_sample=args.views_per_sample,
        ),
    )


def override_view(view: ViewGeometry, args: argparse.Namespace) -> ViewGeometry:
    """Settings of the views with the arguments on top of them."""
    return replace(view, **given(img_size=args.img_size, rotation_deg=args.rotation))


def differences(old: dict, new: dict, where: str = "") -> list[str]:
    """What differs between two nested settings, one line each."""
    lines = []
    for name in new:
        if isinstance(new[name], dict):
            lines += differences(old.get(name, {}), new[name], f"{where}{name}.")
        elif old.get(name) != new[name]:
            lines.append(f"{where}{name} was {old.get(name)} and is now {new[name]}")
    return lines


def check_ranges(
    config: JointConfig, train: TrainSettings, size_multiple: int, source: str
) -> None:
    """Refuse impossible values of what every training script has.

    Raises:
        InputError
    """
    if not config.view.img_size or config.view.img_size < 0 or config.view.img_size % size_multiple:
        raise InputError(
            f"--img_size {config.view.img_size}: must be a multiple of {size_multiple} for this network."
        )
    if (
        min(train.epochs, train.batch_size, train.views_per_sample, config.validation.views) < 1
        or train.workers < 0
    ):
        raise InputError(
            "--epoch, --batch_size, --views_per_sample and validation.views must be at least 1, --workers at "
            "least 0."
        )
    if not (0 < train.lr < float("inf")) or config.seed < 0:
        raise InputError("--lr must be a number above 0, --seed at least 0.")
    if (
        min(*config.view.scale, *config.view.zoom, *config.validation.scale) <= 0
        or config.view.long_side < 32
    ):
        raise InputError(f"{source}: scales and zooms must be above 0, view.long_side at least 32.")
    if not 0 <= config.view.rotation_deg <= 180:
        raise InputError(
            f"--rotation {config.view.rotation_deg:g}: must lie between 0 and 180 degrees."
        )


def find_data(
    root: str, modes: list[str], config: JointConfig, log: Callable[[str], None]
) -> tuple[list[Sample], dict[str, list[str]]]:
    """All samples, and which eyes train, validate and test."""
    samples, lacking = discover_samples(root, modes)
    for line in lacking[:5]:
        log(f"left out: {line}")
    if len(lacking) > 5:
        log(f"left out: {len(lacking) - 5} more samples that lack a file")
    return samples, split_by_eye(
        [sample.eye for sample in samples], config.data.val_test_share, config.seed
    )


def make_data(
    samples: list[Sample], split: dict[str, list[str]], config: JointConfig, sigma: float
) -> tuple[GeneratedPairs, GeneratedPairs]:
    """Training and validation views; ``sigma`` is the width of the junctions in their heatmaps, pixels."""

    def part(name: str) -> list[Sample]:
        return [sample for sample in samples if sample.eye in set(split[name])]

    train = GeneratedPairs(
        part("train"),
        config.view,
        config.data.used_ranges(),
        config.seed,
        sigma,
        config.data.cache_mb,
    )
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
    # Eye by eye, all modes of each: the first views that a validation takes are of every mode.
    val = sorted(part("val"), key=lambda sample: split["val"].index(sample.eye))
    return train, GeneratedPairs(val, whole, None, checks.seed, sigma, config.data.cache_mb)


def find_real_pairs(args: argparse.Namespace, log: Callable[[str], None]) -> list[RealPair]:
    """Landmark pairs of all folders of ``--val_data``."""
    real: list[RealPair] = []
    for folder in args.val_data:
        pairs = load_real_pairs(folder, Path(folder).resolve().name, fixed_role=args.fixed_role)
        log(describe_pairs(folder, pairs))
        if {pair.key for pair in pairs} & {pair.key for pair in real}:
            raise InputError(
                f"--val_data {folder}: another folder of the same name is given too; rename one."
            )
        real += pairs
    return real


def check_same_data(saved: dict, record: dict, checkpoint: Path) -> None:
    """Refuse to resume on other data: ``files`` holds the size of every sample's files.

    Raises:
        InputError
    """
    before, now = saved.get("files", record["files"]), record["files"]
    changed = sorted(key for key in set(before) | set(now) if before.get(key) != now.get(key))
    if changed or saved["split"] != record["split"] or saved["mode"] != record["mode"]:
        named = f" (for example {', '.join(changed[:3])})" if changed else ""
        raise InputError(
            f"{record['data']}: eyes, files{named} or --mode are not those of the run in {checkpoint}; resume with "
            "the same data, or start a new run from its weights with --pretrained."
        )
