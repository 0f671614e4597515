"""Compare methods on pairs with known landmarks, under turns, scales and degradations of the moving image.

    python evaluate.py --real ROOT --mode cffa --weights save/cffa/demo/best.pth --rotations 0 15 30 45 90 180 --out DIR
    python evaluate.py --real ../shared/data/real_pairs/* --generated data/generated --split save/cffa/demo/split.yaml \
        --compare superretina sift mi identity oracle --stress all --wrong_pairs 40 --out DIR

Every transform is scored in the moving image, in pixels times 512 / max(height, width) of the moving image as it is given
to the method ("px at 512"). A pair without a transform has an infinite error and counts everywhere. Beside the methods
stand ``identity`` (the images laid on each other, centre on centre) and ``oracle`` (the least-squares affine through
the landmarks themselves, for reference: what hand-placed points leave). Each method is one file in baselines/.

Writes DIR/pairs.csv (every result, kept: what is there is not computed again, and never mixed with results of other settings),
metrics.json (all figures, with intervals, and every switch behind them), report.html (one file, opens anywhere) and pictures.
"""

from __future__ import annotations

import argparse
import json
import math
import platform
from dataclasses import asdict, replace
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import torch

from dataset.real_pairs import LAYOUTS, describe_pairs
from dataset.samples import MODE_FILES
from evaluation.cache import PairCache
from evaluation.method import Method, MethodSetting, NotAvailable, available_methods, load_method
from evaluation.report import write_evaluation_report
from evaluation.running import (
    evaluate_set,
    evaluate_wrong_pairs,
    format_table,
    with_union,
    without_infinities,
)
from evaluation.sets import EvaluationSet, GeneratedDraw, generated_set, real_set
from evaluation.statistics import accepted_wrong_pairs, compare, summarise
from evaluation.stress import CURVES, Stress, curve, hard_set
from registration.pipeline import TRANSFORMS
from registration.trained_matchers import method_of
from utils.device import DEVICES
from utils.errors import InputError, run_script
from utils.files import check_writable, write_text_atomically

DEFAULT_ROTATIONS = (0.0, 15.0, 30.0, 45.0, 90.0, 180.0)
TRAINED = ("superretina", "loftr")
RULES = {
    "failure_rule": "no transform returned; scored as infinite in every figure",
    "unit": "moving pixels * 512 / max(height, width) of the moving image as the method sees it; turning enlarges its "
    "canvas, so errors at 45 degrees count up to 1.41 times less; a crop makes them count more",
    "thresholds": "median < 5, mean <= 5 (SR_ME), max <= 10 (SR_MAE), AUC of the mean error up to 5, 10 and 20, mAUC over "
    "1..25 px",
    "aggregation": "mean over pairs, each counted once; median of the pairs' medians",
    "interval": "95 % bootstrap over eyes, 1000 resamples, seeded",
}


# --- what to evaluate on ----------------------------------------------------------------------------------------------


def find_sets(args: argparse.Namespace) -> tuple[list[EvaluationSet], dict[str, dict[str, Any]]]:
    """The sets of pairs, and what describes each (a cached result of another description is refused)."""
    sets, described = [], {}
    roots = args.real or []
    modes = args.mode or (["cffa"] if len(roots) == 1 else [Path(root).name for root in roots])
    if roots and len(modes) != len(roots):
        raise InputError(
            f"--mode {' '.join(modes)}: give one for each of the {len(roots)} --real folders, or none."
        )
    if len(set(modes)) != len(modes):
        raise InputError(f"--mode {' '.join(modes)}: the names must differ.")
    for root, mode in zip(roots, modes if roots else [], strict=True):
        pairs, loaders = real_set(root, mode, args.layout, args.fixed_role)
        print(describe_pairs(root, pairs))
        sets.append(EvaluationSet(mode, loaders))
        described[mode] = {
            "kind": "real",
            "data": str(Path(root).resolve()),
            "layout": args.layout,
            "fixed_role": args.fixed_role,
            "pairs": len(loaders),
        }
    if args.generated:
        draw = GeneratedDraw(
            args.draws,
            args.draw_rotation,
            args.draw_shift,
            args.draw_scale,
            args.draw_overlap,
            args.seed,
        )
        loaders = generated_set(args.generated, args.generated_mode, args.split, args.subset, draw)
        sets.append(EvaluationSet("generated", loaders))
        described["generated"] = {
            "kind": "generated",
            "data": str(Path(args.generated).resolve()),
            "mode": "+".join(args.generated_mode),
            "split": args.split,
            "subset": args.subset,
            **asdict(draw),
            "pairs": len(loaders),
        }
    for pairs in sets:
        described[pairs.name]["pairs_crc32"] = pairs.checksum()
    if not sets:
        raise InputError("give --real with folders of real pairs, or --generated, or both.")
    return sets, described


def find_stresses(args: argparse.Namespace) -> list[Stress]:
    """What is done to the moving images, each once: the turns and scales, then the curves, then the hard set."""
    rotations = (
        args.rotations
        if args.rotations is not None
        else ([0.0] if args.stress or args.hard else DEFAULT_ROTATIONS)
    )
    wanted = [
        Stress(rotation=rotation % 360, scale=scale)
        for rotation, scale in product(rotations, args.scales)
    ]
    for name in CURVES if "all" in args.stress else args.stress:
        wanted += curve(name)
    return list(dict.fromkeys(wanted + (hard_set() if args.hard else [])))


def find_methods(args: argparse.Namespace) -> tuple[dict[str, Method], dict[str, str]]:
    """The methods that can run, and why the others cannot.

    A trained network works at the size that it was trained for, all others at that of the first checkpoint among the methods;
    --img_size holds for all.
    """
    # One of our checkpoints says itself which method it is.
    trained = method_of(args.weights) if args.weights else "superretina"
    if trained == "loftr" and args.loftr_weights:
        raise InputError(
            f"--weights {args.weights} is a LoFTR too; give it or --loftr_weights, not both."
        )
    weights = {"loftr": args.loftr_weights, trained: args.weights}
    setting = MethodSetting(weights, args.transform, args.img_size, args.device)
    asked = list(dict.fromkeys(args.compare or [trained, "identity", "oracle"]))
    methods, lacking = {}, {}
    # Trained networks first, whose working size the others share.
    for name in sorted(asked, key=lambda name: name not in TRAINED):
        try:
            methods[name] = load_method(name, setting)
        except NotAvailable as error:
            lacking[name] = str(error)
        if name in TRAINED and name in methods and len(methods) == 1:
            setting = replace(setting, usual_long_side=methods[name].settings["match"]["long_side"])
    methods = {name: methods[name] for name in asked if name in methods}
    if not methods:
        raise InputError(f"--compare: none of these can run here: {'; '.join(lacking.values())}")
    return methods, lacking


def get_args_parser() -> argparse.ArgumentParser:
    """Arguments of the script."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--real", nargs="+", metavar="ROOT", help="folders of real pairs (one set each)"
    )
    parser.add_argument(
        "--mode",
        nargs="+",
        metavar="NAME",
        help="names of the real sets (default: cffa for one folder, folder names for several)",
    )
    parser.add_argument("--layout", default="auto", choices=LAYOUTS)
    parser.add_argument(
        "--fixed_role",
        default="01",
        choices=("01", "02"),
        help="fixed image of the numbered layout",
    )
    parser.add_argument("--out", required=True, metavar="DIR")
    parser.add_argument(
        "--overwrite", action="store_true", help="forget the results that DIR holds"
    )
    parser.add_argument("--device", default="auto", choices=DEVICES)
    methods = parser.add_argument_group("methods")
    methods.add_argument(
        "--compare",
        nargs="+",
        metavar="METHOD",
        help="default: the method of --weights, identity and oracle; "
        f"of {', '.join(available_methods())}; the first is compared with the others",
    )
    methods.add_argument(
        "--weights", metavar="FILE", help="checkpoint (default: the one in save/pretrained)"
    )
    methods.add_argument(
        "--loftr_weights",
        metavar="FILE",
        help="checkpoint of the LoFTR (default: the one in save/pretrained)",
    )
    methods.add_argument(
        "--transform",
        default="affine",
        choices=TRANSFORMS,
        help="beyond affine for the project's own methods; the others take the affine then",
    )
    methods.add_argument(
        "--img_size", type=int, help="working size of all methods, long side in pixels"
    )
    stress = parser.add_argument_group("what is done to the moving image")
    stress.add_argument(
        "--rotations",
        type=float,
        nargs="+",
        metavar="DEG",
        help=f"default: {' '.join(f'{r:g}' for r in DEFAULT_ROTATIONS)}; only 0 with --stress or --hard",
    )
    stress.add_argument("--scales", type=float, nargs="+", default=[1.0])
    stress.add_argument(
        "--stress",
        nargs="+",
        default=[],
        choices=[*CURVES, "all"],
        metavar="NAME",
        help=f"curves, each over its levels: {', '.join(CURVES)}, or all",
    )
    stress.add_argument(
        "--hard",
        action="store_true",
        help="low contrast, noise, blur and half of the overlap, singly and "
        "together, at 0, 30 and 150 degrees; scales 0.7 and 1.4; a turn of 135 degrees",
    )
    stress.add_argument(
        "--wrong_pairs",
        type=int,
        default=0,
        metavar="N",
        help="also N pairs of different eyes per set",
    )
    generated = parser.add_argument_group("generated pairs")
    generated.add_argument(
        "--generated", metavar="ROOT", help="a set of generated pairs beside the real ones"
    )
    generated.add_argument(
        "--generated_mode", nargs="+", default=["cffa"], choices=MODE_FILES, metavar="MODE"
    )
    generated.add_argument("--split", metavar="YAML", help="split.yaml of a run")
    generated.add_argument("--subset", default="test", choices=("train", "val", "test", "all"))
    drawn = GeneratedDraw()
    generated.add_argument("--draws", type=int, default=drawn.draws, help="pairs drawn per sample")
    generated.add_argument(
        "--draw_rotation", type=float, default=drawn.rotation_deg, help="largest rotation, degrees"
    )
    generated.add_argument(
        "--draw_shift", type=float, default=drawn.shift, help="largest shift, share of the image"
    )
    generated.add_argument(
        "--draw_scale", type=float, default=drawn.scale, help="largest scale factor either way"
    )
    generated.add_argument(
        "--draw_overlap",
        type=float,
        default=drawn.overlap,
        help="least overlap, share of what is seen",
    )
    generated.add_argument(
        "--seed",
        type=int,
        default=drawn.seed,
        help="of the draws, the degradations and the wrong pairs",
    )
    output = parser.add_argument_group("output")
    output.add_argument("--no_pictures", action="store_true")
    output.add_argument(
        "--report_cases",
        type=int,
        default=40,
        help="pairs shown in the report, worst first, every pair at "
        "least under its worst condition; 0 = none",
    )
    return parser


def check_arguments(args: argparse.Namespace) -> None:
    """Refuse numbers that mean nothing, or that would ask for an image larger than the memory.

    Raises:
        InputError
    """
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


def main() -> None:
    """Load pairs, run the methods, print the table, write the files."""
    args = get_args_parser().parse_args()
    check_arguments(args)
    stresses, (methods, lacking) = find_stresses(args), find_methods(args)
    sets, described = find_sets(args)
    out = Path(args.out)
    # Before the work of hours, not after it.
    check_writable(out, "--out")
    cache = PairCache(out, {"seed": args.seed, **RULES}, overwrite=args.overwrite)
    wrong = (
        PairCache(
            out,
            {"seed": args.seed, "pairs_per_set": args.wrong_pairs},
            "wrong_pairs",
            args.overwrite,
        )
        if args.wrong_pairs
        else None
    )
    for each in filter(None, (cache, wrong)):
        for name, method in methods.items():
            each.declare_method(name, method.settings)
        for name, description in described.items():
            each.declare_set(name, description)
    for name, method in methods.items():
        print(f"{name}: {json.dumps(method.settings)}")
    for reason in lacking.values():
        print(reason)

    pictures = None if args.no_pictures else out / "pictures"
    for pairs in sets:
        evaluate_set(pairs, methods, stresses, cache, args.seed, pictures)
    if wrong:
        evaluate_wrong_pairs(sets, methods, args.wrong_pairs, args.seed, wrong)

    rows = with_union(
        cache.rows.values(),
        [
            name
            for name, described_set in cache.settings["sets"].items()
            if described_set["kind"] == "real"
        ],
    )
    summary = summarise(rows)
    metrics = {
        "settings": vars(args) | RULES | cache.settings,
        "not_run": lacking,
        "environment": {
            "python": platform.python_version(),
            "torch": torch.__version__,
            "numpy": np.__version__,
        },
        "results": summary,
        "comparisons": compare(rows, next(iter(methods))),
        "wrong_pairs": accepted_wrong_pairs(wrong.rows.values()) if wrong else [],
    }
    write_text_atomically(
        out / "metrics.json", json.dumps(without_infinities(metrics), indent=2) + "\n"
    )
    write_evaluation_report(
        out / "report.html", rows, metrics, pictures, next(iter(methods)), args.report_cases
    )
    print(format_table(summary))
    for row in metrics["wrong_pairs"]:
        print(
            f"{row['set']}, wrong pairs: {row['method']} said ok to {row['said_ok']} of {row['pairs']}"
        )
    print(
        f"px at 512; failures count as infinite. Written: {out / 'report.html'}, {out / 'metrics.json'}, {cache.table}"
        + ("" if args.no_pictures else f", {pictures}")
    )


if __name__ == "__main__":
    run_script(main)
