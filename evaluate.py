"""Compare registration methods on pairs with known landmarks, with degraded moving images.

    python evaluate.py --real ROOT --weights save/cffa/demo/best.pth --out DIR
    python evaluate.py --real ../shared/data/real_pairs/* --out DIR \
        --generated data/generated --split save/cffa/demo/split.yaml \
        --compare superretina sift mi identity oracle --stress all --wrong_pairs 40

The error of a transform is the distance of the landmarks in the moving image, in pixels times
512 / max(height, width) of the moving image ("px at 512"). A pair without a transform has an
infinite error and counts in every metric. Two references are compared with the methods:
``identity`` (image centre on image centre, no registration) and ``oracle`` (least-squares affine
through the landmarks themselves). Each method is one file in evaluation/methods/.

What a network has learned is seen beside ``untrained`` (the same network with random weights), in
the bare view (``--bare``), at rotations of 15, 30 and 45 degrees:

    python evaluate.py --real ROOT --weights FILE --bare --compare superretina untrained --out DIR

Writes DIR/pairs.csv (every result; kept results of equal settings are not computed again),
metrics.json (all metrics with intervals, and all settings), report.html (one file) and pictures.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from evaluation.arguments import DEFAULT_ROTATIONS, check_arguments, get_args_parser
from evaluation.cache import PairCache
from evaluation.method import Method, MethodOptions
from evaluation.method_registry import load_methods
from evaluation.report import write_evaluation_report
from evaluation.running import evaluate_set, evaluate_wrong_pairs
from evaluation.sets import EvaluationSet, GeneratedDraw, generated_set, real_set
from evaluation.statistics import with_union
from evaluation.stress import Stress, select_stresses
from evaluation.summary import RULES, collect_metrics, format_table, without_infinities
from registration.trained_matchers import method_of
from utils.errors import InputError, run_script
from utils.files import check_writable, write_text_atomically


def find_stresses(args: argparse.Namespace) -> list[Stress]:
    """The degradations of the moving images, each once."""
    default = [0.0] if args.stress or args.hard else DEFAULT_ROTATIONS
    rotations = default if args.rotations is None else args.rotations
    return select_stresses(rotations, args.scales, args.stress, args.hard)


def find_methods(args: argparse.Namespace) -> tuple[dict[str, Method], dict[str, str]]:
    """The methods that can run here, and for each of the others the reason why it cannot."""
    # A checkpoint of this project states its method.
    trained = method_of(args.weights) if args.weights else "superretina"
    if trained == "loftr" and args.loftr_weights:
        raise InputError(
            f"--weights {args.weights} is a LoFTR too; give it or --loftr_weights, not both."
        )
    options = MethodOptions(
        weights={
            "loftr": args.loftr_weights,
            trained: args.weights,
            "untrained": args.weights,
        },
        transform=args.transform,
        long_side=args.img_size,
        device=args.device,
        bare=args.bare,
        untrained_seed=args.untrained_seed,
    )
    names = args.compare or [trained, "identity", "oracle"]
    return load_methods(list(dict.fromkeys(names)), options)


def find_sets(args: argparse.Namespace) -> list[EvaluationSet]:
    """The sets of real pairs, then the set of generated pairs."""
    roots = args.real or []
    if not roots and not args.generated:
        raise InputError("give --real with folders of real pairs, or --generated, or both.")
    names = args.mode or (["cffa"] if len(roots) == 1 else [Path(root).name for root in roots])
    if args.mode and not roots:
        raise InputError("--mode names the sets of --real; use --generated_mode for --generated.")
    if len(names) != len(roots):
        raise InputError(
            f"--mode {' '.join(names)}: give one name for each of the {len(roots)} --real "
            "folders, or none."
        )
    if len(set(names)) != len(names):
        raise InputError(f"--mode {' '.join(names)}: the names must differ.")
    sets = [
        real_set(root, name, args.layout, args.fixed_role, args.part, args.real_split)
        for root, name in zip(roots, names, strict=True)
    ]
    if args.generated:
        draw = GeneratedDraw(
            draws=args.draws,
            rotation_deg=args.draw_rotation,
            shift=args.draw_shift,
            scale=args.draw_scale,
            overlap=args.draw_overlap,
            seed=args.seed,
        )
        sets.append(
            generated_set(args.generated, args.generated_mode, args.split, args.subset, draw)
        )
    return sets


def open_cache(
    args: argparse.Namespace,
    name: str,
    protocol: dict[str, object],
    methods: dict[str, Method],
    sets: list[EvaluationSet],
) -> PairCache:
    """The kept results of a table, after a check that their settings are those of this run."""
    cache = PairCache(Path(args.out), protocol, name, args.overwrite)
    for method_name, method in methods.items():
        cache.declare_method(method_name, method.settings)
    for pairs in sets:
        cache.declare_set(pairs.name, pairs.description)
    return cache


def write_results(
    args: argparse.Namespace,
    cache: PairCache,
    wrong: PairCache | None,
    first: str,
    not_run: dict[str, str],
) -> None:
    """Write metrics.json and report.html, and print the table."""
    out = Path(args.out)
    pictures = None if args.no_pictures else out / "pictures"
    described = cache.settings["sets"]
    real_names = [name for name in described if described[name]["kind"] == "real"]
    rows = with_union(cache.rows.values(), real_names)
    wrong_rows = wrong.rows.values() if wrong else []
    settings = vars(args) | RULES | cache.settings
    metrics = collect_metrics(rows, wrong_rows, first, settings, not_run)
    written = [out / "report.html", out / "metrics.json", cache.table]
    content = json.dumps(without_infinities(metrics), indent=2) + "\n"
    write_text_atomically(out / "metrics.json", content)
    write_evaluation_report(
        out / "report.html", rows, metrics, pictures, first, max_cases=args.report_cases
    )
    print(format_table(metrics["results"], metrics["wrong_pairs"]))
    print(
        "px at 512; failures count as infinite. Written: "
        + ", ".join(map(str, written + ([pictures] if pictures else [])))
    )


def main() -> None:
    """Run the methods on all pairs, then write and print the results."""
    args = get_args_parser(__doc__).parse_args()
    check_arguments(args)
    stresses = find_stresses(args)
    methods, not_run = find_methods(args)
    sets = find_sets(args)
    # Before the run, which can take hours.
    check_writable(Path(args.out), "--out")
    cache = open_cache(args, "pairs", {"seed": args.seed, **RULES}, methods, sets)
    wrong = None
    if args.wrong_pairs:
        protocol = {"seed": args.seed, "pairs_per_set": args.wrong_pairs}
        wrong = open_cache(args, "wrong_pairs", protocol, methods, sets)
    for text in [
        *(pairs.overview for pairs in sets if pairs.overview),
        *(f"{name}: {json.dumps(method.settings)}" for name, method in methods.items()),
        *not_run.values(),
    ]:
        print(text)

    pictures = None if args.no_pictures else Path(args.out) / "pictures"
    for pairs in sets:
        evaluate_set(pairs, methods, stresses, cache, args.seed, pictures)
    if wrong:
        evaluate_wrong_pairs(sets, methods, args.wrong_pairs, args.seed, wrong)
    write_results(args, cache, wrong, next(iter(methods)), not_run)


if __name__ == "__main__":
    run_script(main)
