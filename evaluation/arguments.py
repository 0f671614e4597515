"""The command line of evaluate.py."""

from __future__ import annotations

import argparse
import math

from dataset.layouts import LAYOUTS
from dataset.real_pair_files import ALL_PARTS, FIXED_ROLES, PART_HELP
from dataset.samples import MODE_FILES
from evaluation.method import BARE_SUFFIX, MethodOptions
from evaluation.method_registry import OWN, available_methods
from evaluation.sets import GeneratedDraw
from evaluation.stress import CURVES
from registration.transform_choice import TRANSFORMS, matrix_kind_of
from utils.device import DEVICES
from utils.errors import InputError
from utils.version import add_version

DEFAULT_ROTATIONS = (0.0, 15.0, 30.0, 45.0, 90.0, 180.0)  # degrees


def get_args_parser(description: str | None) -> argparse.ArgumentParser:
    """The parser.

    Args:
        description: text above the options.
    """
    parser = argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add_version(parser)
    parser.add_argument("--device", default="auto", choices=DEVICES)
    _add_real(parser.add_argument_group("real pairs"))
    _add_generated(parser.add_argument_group("generated pairs"))
    _add_methods(parser.add_argument_group("methods"))
    _add_stress(parser.add_argument_group("degradation of the moving image"))
    _add_output(parser.add_argument_group("output"))
    return parser


def _add_real(group: argparse._ArgumentGroup) -> None:
    group.add_argument(
        "--real", nargs="+", metavar="ROOT", help="folders of real pairs, one set each"
    )
    group.add_argument(
        "--mode",
        nargs="+",
        metavar="NAME",
        help="names of the real sets (default: cffa for one folder, folder names for several)",
    )
    group.add_argument("--layout", default="auto", choices=LAYOUTS)
    group.add_argument(
        "--fixed_role",
        default="01",
        choices=FIXED_ROLES,
        help="fixed image of the numbered layout",
    )
    group.add_argument("--part", default=ALL_PARTS, metavar="NAME", help=PART_HELP)
    group.add_argument(
        "--real_split",
        metavar="YAML",
        help="split.yaml of a run that learned from these folders: score its test eyes only",
    )


def _add_generated(group: argparse._ArgumentGroup) -> None:
    draw = GeneratedDraw()
    group.add_argument("--generated", metavar="ROOT", help="a set of generated pairs")
    group.add_argument(
        "--generated_mode",
        nargs="+",
        default=["cffa"],
        choices=MODE_FILES,
        metavar="MODE",
        help=f"kinds of generated pairs, of {', '.join(MODE_FILES)} (default: cffa)",
    )
    group.add_argument("--split", metavar="YAML", help="split.yaml of a training run")
    group.add_argument("--subset", default="test", choices=("train", "val", "test", "all"))
    group.add_argument("--draws", type=int, default=draw.draws, help="pairs drawn per sample")
    group.add_argument(
        "--draw_rotation", type=float, default=draw.rotation_deg, help="largest rotation, degrees"
    )
    group.add_argument(
        "--draw_shift", type=float, default=draw.shift, help="largest shift, share of the image"
    )
    group.add_argument(
        "--draw_scale", type=float, default=draw.scale, help="largest scale factor either way"
    )
    group.add_argument(
        "--draw_overlap",
        type=float,
        default=draw.overlap,
        help="least overlap, share of the visible retina",
    )
    group.add_argument(
        "--seed",
        type=int,
        default=draw.seed,
        help="of the draws, the degradations and the wrong pairs",
    )


def _add_methods(group: argparse._ArgumentGroup) -> None:
    group.add_argument(
        "--compare",
        nargs="+",
        metavar="METHOD",
        help=f"of {', '.join(available_methods())} (default: the method of --weights, identity "
        "and oracle); the first is compared with the others",
    )
    group.add_argument(
        "--weights", metavar="FILE", help="checkpoint (default: the one in save/pretrained)"
    )
    group.add_argument(
        "--loftr_weights",
        metavar="FILE",
        help="checkpoint of the LoFTR (default: the one in save/pretrained)",
    )
    group.add_argument(
        "--bare",
        action="store_true",
        help=f"run {', '.join(OWN)} in the bare view, what the network alone gives: one match of "
        "the images as they are and one robust fit, without rotated, smaller or mirrored copies, "
        "guided rounds, refinement on the ridge maps and least confidence. Their names in all "
        f"tables then end with {BARE_SUFFIX}. Other methods run as without --bare",
    )
    group.add_argument(
        "--untrained_seed",
        type=int,
        default=MethodOptions().untrained_seed,
        help="of the random weights of the method untrained, which has the architecture and the "
        "match settings of --weights",
    )
    group.add_argument(
        "--transform",
        default="affine",
        choices=TRANSFORMS,
        help="beyond a matrix for the project's own methods only; the others estimate an affine",
    )
    group.add_argument(
        "--img_size",
        type=int,
        help="working size of all methods: diameter of the field of view, pixels",
    )


def _add_stress(group: argparse._ArgumentGroup) -> None:
    rotations = " ".join(f"{rotation:g}" for rotation in DEFAULT_ROTATIONS)
    group.add_argument(
        "--rotations",
        type=float,
        nargs="+",
        metavar="DEG",
        help=f"default: {rotations}; only 0 with --stress or --hard",
    )
    group.add_argument("--scales", type=float, nargs="+", default=[1.0])
    group.add_argument(
        "--stress",
        nargs="+",
        default=[],
        choices=[*CURVES, "all"],
        metavar="NAME",
        help=f"stress curves, each over its levels: {', '.join(CURVES)}, or all",
    )
    group.add_argument(
        "--hard",
        action="store_true",
        help="low contrast, noise, blur and half of the overlap, singly and combined, at 0, 30 and "
        "150 degrees; scales 0.7 and 1.4; a rotation of 135 degrees",
    )
    group.add_argument(
        "--wrong_pairs",
        type=int,
        default=0,
        metavar="N",
        help="also N pairs of different eyes per set",
    )


def _add_output(group: argparse._ArgumentGroup) -> None:
    group.add_argument("--out", required=True, metavar="DIR")
    group.add_argument("--overwrite", action="store_true", help="ignore results in DIR")
    group.add_argument("--no_pictures", action="store_true")
    group.add_argument(
        "--report_cases",
        type=int,
        default=40,
        help="pairs in the report, worst first, each pair at least under its worst condition; "
        "0 = none",
    )


def check_arguments(args: argparse.Namespace) -> None:
    """Check the ranges of numbers, and options that exclude each other.

    Raises:
        InputError: a number outside of its range, one that needs too large an image, or a curved
            transform in the bare view.
    """
    if args.bare and args.transform != matrix_kind_of(args.transform):
        raise InputError(
            f"--bare --transform {args.transform}: curved transforms are fitted to the ridge maps, "
            "which the bare view leaves out; choose affine, similarity or homography."
        )
    if not 0 <= args.untrained_seed < 2**63:
        raise InputError("--untrained_seed must be from 0 to 2^63 - 1.")
    if not all(0.05 <= scale <= 20 for scale in args.scales):
        raise InputError("--scales must lie above 0, from 0.05 to 20.")
    if not all(math.isfinite(angle) for angle in args.rotations or ()):
        raise InputError("--rotations must be finite numbers of degrees.")
    if args.wrong_pairs < 0 or args.report_cases < 0:
        raise InputError("--wrong_pairs and --report_cases must be at least 0.")
    if args.draws < 1 or args.seed < 0 or not 0.1 <= args.draw_scale <= 10:
        raise InputError(
            "--draws must be at least 1, --seed at least 0, --draw_scale from 0.1 to 10."
        )
    if not 0 <= args.draw_rotation <= 180 or not 0 <= args.draw_shift <= 1:
        raise InputError(
            "--draw_rotation must lie between 0 and 180 degrees, --draw_shift between 0 and 1."
        )
