"""Score a trained model on pairs with known landmarks, at several rotations and scales of the moving image.

    python evaluate.py --data ROOT --mode cffa --weights save/cffa/demo/best.pth --rotations 0 15 30 45 90 180 --out DIR
    python evaluate.py --layout generated --data data/generated --split save/cffa/demo/split.yaml --weights ... --out DIR

Every transform is scored in the moving image, in pixels times 512 / max(height, width) of the moving image as it is given
to the method ("px at 512"). A pair without a transform has an infinite error and counts everywhere. Beside the method
stand ``identity`` (the images laid on each other, centre on centre) and ``oracle`` (the best affine through the landmarks
themselves: the floor that hand-placed points leave). Writes metrics.json, pairs.csv and pictures.
"""
from __future__ import annotations

import argparse
import csv
import io
import json
import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from itertools import product
from pathlib import Path

import numpy as np
from tqdm import tqdm

from dataset.generated_pairs import (
    MODE_FILES,
    GeneratedPairs,
    ViewGeometry,
    ViewKey,
    discover_samples,
    read_manifest,
)
from dataset.real_pairs import LAYOUTS, RealPair, describe_pairs, load_real_pairs
from model.registration import Registration
from register import DEFAULT_WEIGHTS, Registrar
from utils.device import DEVICES
from utils.errors import InputError, run_script
from utils.geometry import (
    TRANSFORM_MODELS,
    Size,
    affine_about,
    fit_affine,
    image_centre,
    turn_about_centre,
    warp_points,
)
from utils.image_io import check_writable, write_text_atomically
from utils.metrics import aggregate, image_corners, pair_error
from utils.pictures import register_onto_fixed
from utils.validation import write_pair_pictures

PAIR_COLUMNS = ["method", "id", "eye", "rotation", "scale", "status", "reason", "mean", "median", "max", "n_matches",
                "n_inliers", "seconds"]
TABLE = [("success_median5", "median<5"), ("SR_ME", "SR_ME"), ("SR_MAE", "SR_MAE"), ("AUC@5", "AUC@5"),
         ("AUC@10", "AUC@10"), ("AUC@20", "AUC@20"), ("mAUC", "mAUC"), ("failed_rate", "failed"),
         ("median_of_medians", "med.med."), ("seconds", "s/pair")]


@dataclass(frozen=True)
class EvaluationPair:
    """A pair with landmarks: (H, W) float images at their own sizes, (N, 2) landmarks in pixels of each."""

    key: str
    eye: str
    fixed: np.ndarray
    moving: np.ndarray
    fixed_landmarks: np.ndarray
    moving_landmarks: np.ndarray


@dataclass(frozen=True)
class Estimate:
    """What a method returns for a pair; ``registration`` only where there is something to draw."""

    H_fix_to_mov: np.ndarray | None
    status: str = "ok"
    reason: str = ""
    n_matches: int = 0
    n_inliers: int = 0
    seconds: float = 0.0
    registration: Registration | None = None


Method = Callable[[EvaluationPair], Estimate]


# Pairs are read one at a time, when their turn comes: a set of large photographs does not fit into memory.
PairLoader = Callable[[], EvaluationPair]


def real_pairs(args: argparse.Namespace) -> list[PairLoader]:
    """Real pairs with their hand-placed landmarks."""
    pairs = load_real_pairs(args.data, args.mode, args.layout, args.fixed_role)
    print(describe_pairs(args.data, pairs))

    def load(pair: RealPair) -> EvaluationPair:
        return EvaluationPair(pair.key, pair.eye, *pair.images(), pair.fixed_landmarks, pair.moving_landmarks)
    return [partial(load, pair) for pair in pairs]


def generated_pairs(args: argparse.Namespace) -> list[PairLoader]:
    """Whole-image views of generated samples; their landmarks are the corners, so "mean" is the corner error.

    Raises:
        InputError: no split given, or a split of other data.
    """
    samples, _ = discover_samples(args.data, args.mode.split("+"))
    if args.subset != "all":
        if not args.split:
            raise InputError("--layout generated: give the --split of the run, so that no training eye is scored, or "
                             "--subset all.")
        eyes = set(read_manifest(args.split)[args.subset])
        samples = [sample for sample in samples if sample.eye in eyes]
        if not samples:
            raise InputError(f"{args.split}: none of its {args.subset} eyes is in {args.data}; is it the split of other data?")
    geometry = ViewGeometry(img_size=None, rotation_deg=args.draw_rotation, translation=args.draw_shift,
                            scale=(1 / args.draw_scale, args.draw_scale), shear=0.0, mirror=False)
    views = GeneratedPairs(samples, geometry, seed=args.seed)

    def load(index: int) -> EvaluationPair:
        view = views[ViewKey(0, index)]
        fixed, moving = view["fixed_image"][0].numpy(), view["moving_image"][0].numpy()
        corners = image_corners(fixed.shape)
        return EvaluationPair(f"{view['key']}_{index:03d}", view["eye"], fixed, moving, corners,
                              warp_points(corners, view["H_fix_to_mov"].double().numpy()))
    return [partial(load, index) for index in range(len(samples) * args.draws)]


def turned(pair: EvaluationPair, rotation_deg: float, scale: float) -> EvaluationPair:
    """The pair with its moving image turned about its centre and scaled, on a canvas that loses no pixel."""
    if rotation_deg % 360 == 0 and scale == 1:
        return pair
    H_moving_to_canvas, canvas = turn_about_centre(pair.moving.shape, rotation_deg, scale)
    moving = register_onto_fixed(pair.moving, np.linalg.inv(H_moving_to_canvas), canvas)
    return EvaluationPair(pair.key, pair.eye, pair.fixed, moving, pair.fixed_landmarks,
                          warp_points(pair.moving_landmarks, H_moving_to_canvas))


def identity_matrix(fixed_size: Size, moving_size: Size) -> np.ndarray:
    """Laying the images on each other: centre on centre, long side on long side."""
    return affine_about(0.0, max(moving_size) / max(fixed_size), 0.0, image_centre(fixed_size), image_centre(moving_size))


def make_methods(registrar: Registrar) -> dict[str, Method]:
    """The model and its two yardsticks."""
    def model(pair: EvaluationPair) -> Estimate:
        result = registrar.register(pair.fixed, pair.moving)
        return Estimate(result.H_fix_to_mov, result.status, result.reason, result.n_matches, result.n_inliers,
                        result.seconds, result)

    def identity(pair: EvaluationPair) -> Estimate:
        return Estimate(identity_matrix(pair.fixed.shape, pair.moving.shape))

    def oracle(pair: EvaluationPair) -> Estimate:
        return Estimate(fit_affine(pair.fixed_landmarks, pair.moving_landmarks))
    return {registrar.matcher.name: model, "identity": identity, "oracle": oracle}


def evaluate_pairs(loaders: list[PairLoader], methods: dict[str, Method], rotations: list[float],
                   scales: list[float], picture_folder: Path | None) -> list[dict]:
    """Run every method on every pair at every rotation and scale: one record per row of ``pairs.csv``."""
    records = []
    for load in tqdm(loaders, desc="evaluate", unit="pair"):
        original = load()
        for rotation, scale in product(rotations, scales):
            pair = turned(original, rotation, scale)
            for name, method in methods.items():
                estimate = method(pair)
                error = pair_error(estimate.H_fix_to_mov, pair.fixed_landmarks, pair.moving_landmarks, pair.moving.shape)
                records.append({"method": name, "id": pair.key, "eye": pair.eye, "rotation": rotation, "scale": scale,
                                "status": estimate.status, "reason": estimate.reason, "mean": error.mean,
                                "median": error.median, "max": error.max, "n_matches": estimate.n_matches,
                                "n_inliers": estimate.n_inliers, "seconds": estimate.seconds, "error": error})
                if picture_folder is not None and estimate.registration is not None:
                    write_pair_pictures(picture_folder / pair.key, f"rot{rotation:g}_scale{scale:g}", pair.fixed,
                                        pair.moving, estimate.registration)
    return records


def summarise(records: list[dict]) -> list[dict]:
    """Aggregates per method, rotation and scale."""
    groups: dict[tuple, list[dict]] = {}
    for record in records:
        groups.setdefault((record["method"], record["rotation"], record["scale"]), []).append(record)
    return [{"method": method, "rotation": rotation, "scale": scale,
             **aggregate([r["error"] for r in group], [r["eye"] for r in group]),
             "seconds": float(np.mean([r["seconds"] for r in group]))}
            for (method, rotation, scale), group in groups.items()]


def format_table(summary: list[dict]) -> str:
    """The table for the terminal."""
    lines = [f"{'method':<12}{'rot':>5}{'scale':>7}{'pairs':>6}" + "".join(f"{title:>10}" for _, title in TABLE)]
    for row in summary:
        lines.append(f"{row['method']:<12}{row['rotation']:>5g}{row['scale']:>7g}{row['pairs']:>6.0f}"
                     + "".join(f"{row[name]:>10.3f}" for name, _ in TABLE))
    return "\n".join(lines)


def write_outputs(out: Path, records: list[dict], summary: list[dict], settings: dict) -> None:
    """Write ``pairs.csv`` and ``metrics.json``; an infinite figure is "inf" in the table and null in JSON."""
    buffer = io.StringIO()
    writer = csv.DictWriter(buffer, PAIR_COLUMNS, extrasaction="ignore", lineterminator="\n")
    writer.writeheader()
    writer.writerows(records)
    write_text_atomically(out / "pairs.csv", buffer.getvalue())
    finite = [{name: None if isinstance(value, float) and not math.isfinite(value) else value
               for name, value in row.items()} for row in summary]
    write_text_atomically(out / "metrics.json", json.dumps({"settings": settings, "results": finite}, indent=2) + "\n")


def get_args_parser() -> argparse.ArgumentParser:
    """Arguments of the script."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True, metavar="ROOT")
    parser.add_argument("--mode", default="cffa", help="name of the kind of pair; for --layout generated one or several of "
                        f"{', '.join(MODE_FILES)} joined by +")
    parser.add_argument("--weights", metavar="FILE", help=f"checkpoint (default: {DEFAULT_WEIGHTS.name} in save/pretrained)")
    parser.add_argument("--rotations", type=float, nargs="+", default=[0, 15, 30, 45, 90, 180], metavar="DEG")
    parser.add_argument("--scales", type=float, nargs="+", default=[1.0], help="of the moving image")
    parser.add_argument("--out", required=True, metavar="DIR")
    parser.add_argument("--layout", default="auto", choices=[*LAYOUTS, "generated"])
    parser.add_argument("--fixed_role", default="01", choices=("01", "02"), help="fixed image of the numbered layout")
    parser.add_argument("--transform", default="affine", choices=TRANSFORM_MODELS)
    parser.add_argument("--img_size", type=int, help="working size, long side in pixels")
    parser.add_argument("--device", default="auto", choices=DEVICES)
    parser.add_argument("--no_pictures", action="store_true")
    generated = parser.add_argument_group("generated pairs (--layout generated)")
    generated.add_argument("--split", metavar="YAML", help="split.yaml of a run")
    generated.add_argument("--subset", default="test", choices=("train", "val", "test", "all"))
    generated.add_argument("--draws", type=int, default=2, help="pairs drawn per sample")
    generated.add_argument("--draw_rotation", type=float, default=30.0, help="largest rotation, degrees")
    generated.add_argument("--draw_shift", type=float, default=0.1, help="largest shift, share of the image")
    generated.add_argument("--draw_scale", type=float, default=1.1, help="largest scale factor either way")
    generated.add_argument("--seed", type=int, default=777, help="of the draws")
    return parser


def check_arguments(args: argparse.Namespace) -> None:
    """Refuse numbers that mean nothing, or that would ask for an image larger than the memory.

    Raises:
        InputError
    """
    if not all(0.05 <= scale <= 20 for scale in args.scales):
        raise InputError("--scales must lie above 0, from 0.05 to 20.")
    if not all(math.isfinite(angle) for angle in args.rotations):
        raise InputError("--rotations must be finite numbers of degrees.")
    if args.draws < 1 or args.seed < 0 or not 0.1 <= args.draw_scale <= 10:
        raise InputError("--draws must be at least 1, --seed at least 0, --draw_scale from 0.1 to 10.")
    if not 0 <= args.draw_rotation <= 180 or not 0 <= args.draw_shift <= 1:
        raise InputError("--draw_rotation must lie between 0 and 180 degrees, --draw_shift between 0 and 1.")


def main() -> None:
    """Load pairs, run the methods, print the table, write the files."""
    args = get_args_parser().parse_args()
    check_arguments(args)
    registrar = Registrar(args.weights, args.transform, args.img_size, args.device)
    loaders = generated_pairs(args) if args.layout == "generated" else real_pairs(args)
    out = Path(args.out)
    # Before the work of hours, not after it.
    check_writable(out, "--out")
    records = evaluate_pairs(loaders, make_methods(registrar), args.rotations, args.scales,
                             None if args.no_pictures else out / "pictures")
    summary = summarise(records)
    settings = vars(args) | {"weights": str(registrar.weights), "long_side": registrar.matcher.settings.long_side,
                             "inlier_threshold_px": registrar.matcher.settings.inlier_threshold_px,
                             "failure_rule": "no transform returned; scored as infinite",
                             "unit": "moving pixels * 512 / max(height, width) of the moving image as the method sees it; "
                                     "turning enlarges its canvas, so errors at 45 degrees count up to 1.41 times less",
                             "interval": "95 % bootstrap over eyes"}
    write_outputs(out, records, summary, settings)
    print(format_table(sorted(summary, key=lambda row: (row["scale"], row["rotation"]))))
    print(f"px at 512; failures count as infinite. Written: {out / 'metrics.json'}, {out / 'pairs.csv'}"
          + ("" if args.no_pictures else f", {out / 'pictures'}"))


if __name__ == "__main__":
    run_script(main)
