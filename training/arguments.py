"""Command-line arguments that all training scripts share."""

from __future__ import annotations

import argparse
from typing import Any

from dataset.real_pair_files import ALL_PARTS, FIXED_ROLES, PART_HELP
from dataset.samples import MODE_FILES
from dataset.view_sources import REAL_FORMS
from training.processes import PRECISIONS
from utils.device import DEVICES
from utils.errors import InputError
from utils.version import add_version

DEFAULT_DATA = "data/generated"
# Arguments that define a run but are no settings, with their defaults; a checkpoint holds them.
RECORDED_ARGUMENTS: dict[str, Any] = {
    "val_data": [],
    "real": [],
    "real_weight": [],
    "fixed_role": "01",
    "part": ALL_PARTS,
    "data_weight": [],
    "mode_weight": [],
    "split_file": None,
    "precision": "32",
    "overfit": False,
}


def get_parser(description: str | None, default_config: str) -> argparse.ArgumentParser:
    """The shared arguments; an argument that is not given is None and keeps the config's value.

    Args:
        description: of the script.
        default_config: config file of a run without ``--config``, for the help text.
    """
    parser = argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add_version(parser)
    add_run_arguments(parser, default_config)
    add_data_arguments(parser)
    add_loop_arguments(parser)
    return parser


def add_run_arguments(parser: argparse.ArgumentParser, default_config: str) -> None:
    """Arguments about the run as a whole: names, files, device.

    Args:
        parser: is extended.
        default_config: config file of a run without ``--config``, for the help text.
    """
    add = parser.add_argument
    add("--name", help="name of the run")
    add("--config", help=f"settings (default: {default_config})")
    add("--save", default="save", help="folder of all runs")
    add(
        "--set",
        nargs="+",
        action="extend",
        default=[],
        metavar="KEY=VALUE",
        help="any setting of the config, such as view.scale=[0.5,2]; named arguments come on top",
    )
    add("--seed", type=int, help="of weights and views")
    add("--device", default="auto", choices=DEVICES)
    add(
        "--precision",
        choices=list(PRECISIONS),
        help="floating-point format; fp16 needs a GPU and scales the loss (default: 32)",
    )
    add("--pretrained", metavar="FILE", help="start from these weights (ours or published ones)")
    add(
        "--resume",
        nargs="?",
        const="latest",
        metavar="FILE",
        help="continue a run from its newest undamaged checkpoint, or from FILE",
    )
    add("--profile", action="store_true", help="print the time of each part of a step")


def add_data_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments about the images.

    Args:
        parser: is extended.
    """
    add = parser.add_argument
    add("--mode", nargs="+", default=["cffa"], choices=list(MODE_FILES), help="kinds of pairs")
    add(
        "--mode_weight",
        nargs="+",
        type=float,
        metavar="W",
        help="shares of the views, in the order of --mode (default: all samples equally often)",
    )
    add(
        "--data",
        nargs="+",
        metavar="ROOT",
        help=f"generated data, one set or several, see docs/data.md (default: {DEFAULT_DATA})",
    )
    add(
        "--data_weight",
        nargs="+",
        type=float,
        metavar="W",
        help="shares of the views, in the order of --data (default: all samples equally often)",
    )
    add_split_arguments(parser)
    add_real_arguments(parser)
    add("--img_size", type=int, help="side of the square training views, pixels")
    add("--rotation", type=float, help="largest rotation of the moving image, degrees; 180 = any")
    add("--views_per_sample", type=int, help="views of each sample per epoch")
    add("--workers", type=int, help="data loading processes (default: all cores but one)")


def add_real_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments about real images.

    Args:
        parser: is extended.
    """
    add = parser.add_argument
    add(
        "--real",
        nargs="+",
        metavar="ROOT",
        help="real images to learn from: folders of pairs with or without landmarks, folders of "
        "single images, or CSV tables of pairs, see docs/data.md",
    )
    add("--real_share", type=float, metavar="S", help="share of real samples in every batch")
    add(
        "--real_weight",
        nargs="+",
        type=float,
        metavar="W",
        help="shares of the real samples, in the order of --real (default: all equally often)",
    )
    add(
        "--real_forms",
        nargs="+",
        metavar="FORM",
        help=f"how real images teach: {', '.join(REAL_FORMS)} (default: all that the images allow)",
    )
    add("--val_data", nargs="+", help="folders of real landmark pairs to validate on only")
    add("--fixed_role", choices=FIXED_ROLES, help="fixed image of real pairs (default: 01)")
    add("--part", metavar="NAME", help=f"of --real and --val_data: {PART_HELP}")


def add_split_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments about the split of the eyes into training, validation and test.

    Args:
        parser: is extended.
    """
    add = parser.add_argument
    add("--split", dest="split_file", metavar="FILE", help="the split.yaml of another run")
    add("--split_seed", type=int, help="of the split (default: 0)")
    add(
        "--fold",
        type=fold_of,
        metavar="k/K",
        help="cross-validation: the eyes are dealt into K folds; validation on fold k, test on the "
        "next one",
    )


def fold_of(text: str) -> tuple[int, int]:
    """Read ``k/K``; the range is checked with the settings.

    Args:
        text: from the command line.

    Raises:
        argparse.ArgumentTypeError: anything else.
    """
    number, slash, n_folds = text.partition("/")
    if not slash or not number.isdecimal() or not n_folds.isdecimal():
        raise argparse.ArgumentTypeError(f"{text!r}: must be k/K, for example 1/5")
    return int(number), int(n_folds)


def add_loop_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments about the training loop.

    Args:
        parser: is extended.
    """
    add = parser.add_argument
    add("--epoch", type=int, help="number of epochs")
    add("--batch_size", type=int, help="pairs per step, over all processes")
    add("--accumulate", type=int, help="compute each batch in this many parts, to save memory")
    add("--lr", type=float, help="largest learning rate")
    add("--val_every", type=int, help="validate after every N-th epoch, the first and the last")
    add(
        "--overfit",
        action="store_true",
        default=None,
        help="train on one batch only: a check that the network can learn at all",
    )


def frozen_names(names: list[str] | None) -> tuple[str, ...] | None:
    """The value of ``--freeze``, where ``none`` stands for no name.

    Args:
        names: as given; None if the argument was not.

    Raises:
        InputError: "none" beside names.
    """
    if names is None:
        return None
    if "none" in names and len(names) > 1:
        raise InputError(f"--freeze {' '.join(names)}: give either none or names of modules.")
    return tuple(name for name in names if name != "none")


def resolve_arguments(args: argparse.Namespace, saved: dict[str, Any] | None) -> None:
    """Fill in ``RECORDED_ARGUMENTS``; a resumed run keeps those of its checkpoint.

    Args:
        args: parsed arguments; changed in place.
        saved: ``config`` entry of the checkpoint that is resumed; None for a new run.

    Raises:
        InputError: an argument that differs from the run that is resumed.
    """
    for name, default in RECORDED_ARGUMENTS.items():
        was = saved.get(name, default) if saved else default
        if saved and getattr(args, name) not in (None, was):
            option = name.removesuffix("_file")  # the entry "split" of a checkpoint holds the eyes
            raise InputError(
                f"--resume continues a run as it was, but --{option} was {was}. Leave it out."
            )
        if getattr(args, name) is None:
            setattr(args, name, was)
