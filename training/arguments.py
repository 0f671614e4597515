"""Command-line arguments that all training scripts share."""

from __future__ import annotations

import argparse
from typing import Any

from dataset.real_pair_files import FIXED_ROLES
from dataset.samples import MODE_FILES
from training.processes import PRECISIONS
from utils.device import DEVICES
from utils.errors import InputError

DEFAULT_DATA = "data/generated"
# Arguments that define a run but are no settings, with their defaults; a checkpoint holds them.
RECORDED_ARGUMENTS: dict[str, Any] = {
    "val_data": [],
    "fixed_role": "01",
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
    add("--seed", type=int, help="of weights, split and views")
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
    add("--data", help=f"generated data, see docs/data.md (default: {DEFAULT_DATA})")
    add("--val_data", nargs="+", help="folders of real landmark pairs, validated every epoch")
    add("--fixed_role", choices=FIXED_ROLES, help="fixed image of --val_data (default: 01)")
    add("--img_size", type=int, help="side of the square training views, pixels")
    add("--rotation", type=float, help="largest rotation of the moving image, degrees; 180 = any")
    add("--views_per_sample", type=int, help="views of each sample per epoch")
    add("--workers", type=int, help="data loading processes")


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
            raise InputError(
                f"--resume continues a run as it was, but --{name} was {was}. Leave it out."
            )
        if getattr(args, name) is None:
            setattr(args, name, was)
