"""The claims of plan LoFTR v3, measured: base, v3, full fine-tuning, soft mask, no mask, and what freezing saves.

    python -m benchmarks.loftr_study --data data/generated --real ../shared/data/real_pairs --doc docs/loftr_v3.md
    python -m benchmarks.loftr_study --only cost                 # seconds and memory per step alone

Trains what is not trained yet (save/<mode>/study_*), scores every variant on (i) generated pairs of unseen eyes, (ii) real
landmark pairs, as found and turned, and (iii) photographs outside of the training domain, under known homographies; writes
the table to save/loftr_study/table.md and, with --doc, between that file's markers. All variants start from one base (at the
epoch that its validation chose, which is what is scored), take the same steps and are scored at their last epoch.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np
import skimage.data
import torch
from torch.utils.data import default_collate

from dataset.generated_pairs import GeneratedPairs, ViewKey
from dataset.real_pairs import load_real_pairs
from dataset.samples import discover_samples
from dataset.split import read_manifest
from dataset.views import ViewGeometry
from geometry.accuracy import PairError, pair_error
from geometry.estimation import Plausibility
from geometry.matrices import (
    affine_about,
    compose,
    image_centre,
    translation_matrix,
    turn_about_centre,
)
from geometry.points import image_corners, warp_points
from geometry.rasters import register_onto_fixed
from registration.matcher import Matcher
from registration.pipeline import register_pair
from registration.trained_matchers import build_model, load_matcher
from synthesis.generated_set import DEFAULT_EYES, write_generated_set
from training.processes import PRECISIONS
from training.setup import DEFAULT_DATA
from training.step_meter import reset_peak_memory, step_memory_mb
from training.vessel_step import DEFAULT_CONFIG, LoFTRConfig, VesselStep, count_parameters
from utils.checkpoint import read_checkpoint
from utils.commands import run
from utils.config import build, read_yaml
from utils.errors import InputError, run_script
from utils.files import write_text_atomically

VARIANTS = {
    "v3": [],
    "full fine-tuning": ["--freeze", "none"],
    "v3, soft mask": ["--mask", "soft"],
    "v3, no mask": ["--mask", "none"],
}
PHOTOGRAPHS = (
    "astronaut",
    "brick",
    "camera",
    "chelsea",
    "coffee",
    "coins",
    "gravel",
    "grass",
    "page",
    "rocket",
)
COST_VARIANTS = {"frozen": None, "unfrozen": ()}
MARKERS = ("<!-- table: begin -->", "<!-- table: end -->")
LIMIT_PX = 5.0


class Photographs(NamedTuple):
    """A pair of one photograph: (H, W) float images and the homography between them."""

    key: str
    fixed: np.ndarray
    moving: np.ndarray
    H_fix_to_mov: np.ndarray


def random_homography(size: tuple[int, int], rng: np.random.Generator) -> np.ndarray:
    """``H_fix_to_mov`` of a photograph seen from elsewhere: turned by up to 30 degrees, shifted, scaled, tilted a little."""
    centre = image_centre(size)
    tilt = np.eye(3)
    tilt[2, :2] = rng.uniform(-0.15, 0.15, 2) / max(size)
    turn = affine_about(
        rng.uniform(-30, 30),
        float(np.exp(rng.uniform(-0.15, 0.15))),
        0.0,
        (0.0, 0.0),
        centre + rng.uniform(-0.08, 0.08, 2) * max(size),
    )
    return compose(translation_matrix(-centre), tilt, turn)


def retention_pairs(views: int = 3, seed: int = 0) -> list[Photographs]:
    """``views`` views of each of scikit-image's sample photographs; the same ones for the same seed."""
    pairs = []
    for index, name in enumerate(PHOTOGRAPHS):
        image = getattr(skimage.data, name)()
        fixed = (image[..., 1] if image.ndim == 3 else image).astype(np.float32) / 255.0
        for view in range(views):
            H = random_homography(fixed.shape, np.random.default_rng([seed, index, view]))
            pairs.append(
                Photographs(
                    f"{name}_{view}",
                    fixed,
                    register_onto_fixed(fixed, np.linalg.inv(H), fixed.shape),
                    H,
                )
            )
    return pairs


def find_error(
    matcher: Matcher,
    limits: Plausibility,
    fixed: np.ndarray,
    moving: np.ndarray,
    fixed_landmarks: np.ndarray,
    moving_landmarks: np.ndarray,
    transform: str = "affine",
) -> PairError:
    """Register a pair and compare its landmarks; infinite where the registration failed."""
    H_fix_to_mov = register_pair(matcher, fixed, moving, transform, limits).H_fix_to_mov
    return pair_error(H_fix_to_mov, fixed_landmarks, moving_landmarks, moving.shape)


def score_generated(
    matcher: Matcher, limits: Plausibility, data: str, mode: str, split: Path
) -> list[float]:
    """Corner error of two views of each sample of the test eyes: rotation to 30 degrees, shift to 10 %, scale to 1.1."""
    eyes = set(read_manifest(split)["test"])
    samples = [sample for sample in discover_samples(data, [mode])[0] if sample.eye in eyes]
    whole = ViewGeometry(
        img_size=None,
        rotation_deg=30.0,
        translation=0.1,
        scale=(1 / 1.1, 1.1),
        shear=0.0,
        mirror=False,
    )
    views, errors = GeneratedPairs(samples, whole, seed=777), []
    for index in range(2 * len(samples)):
        view = views[ViewKey(0, index)]
        fixed, moving = view["fixed_image"][0].numpy(), view["moving_image"][0].numpy()
        corners = image_corners(fixed.shape)
        mapped = warp_points(corners, view["H_fix_to_mov"].double().numpy())
        errors.append(find_error(matcher, limits, fixed, moving, corners, mapped).mean)
    return errors


def score_real(
    matcher: Matcher, limits: Plausibility, folders: list[Path], rotation_deg: float
) -> list[float]:
    """Median landmark error of each real pair, its moving image turned onto a canvas that loses no pixel."""
    errors = []
    for pair in (pair for folder in folders for pair in load_real_pairs(folder, folder.name)):
        fixed, moving = pair.images()
        H_moving_to_canvas, canvas = turn_about_centre(moving.shape, rotation_deg)
        turned = (
            register_onto_fixed(moving, np.linalg.inv(H_moving_to_canvas), canvas)
            if rotation_deg
            else moving
        )
        landmarks = warp_points(pair.moving_landmarks, H_moving_to_canvas)
        errors.append(
            find_error(matcher, limits, fixed, turned, pair.fixed_landmarks, landmarks).median
        )
    return errors


def score_retention(matcher: Matcher, limits: Plausibility) -> list[float]:
    """Corner error of each retention pair."""
    errors = []
    for pair in retention_pairs():
        corners = image_corners(pair.fixed.shape)
        errors.append(
            find_error(
                matcher,
                limits,
                pair.fixed,
                pair.moving,
                corners,
                warp_points(corners, pair.H_fix_to_mov),
                "homography",
            ).mean
        )
    return errors


def share(errors: list[float]) -> str:
    """How many errors are below the limit, and the median of all: ``27/28 (0.9 px)``."""
    values = np.array(errors)
    return f"{int((values < LIMIT_PX).sum())}/{len(values)} ({np.median(values):.1f} px)"


def score(weights: Path, args: argparse.Namespace) -> dict[str, str]:
    """All scores of one checkpoint, as cells of the table."""
    matcher, limits = load_matcher(weights)
    split = weights.parent / "split.yaml"
    cells = {"generated": share(score_generated(matcher, limits, args.data, args.mode, split))}
    folders = (
        sorted(path for path in args.real.iterdir() if path.is_dir()) if args.real.is_dir() else []
    )
    if folders:
        cells |= {
            f"real, {rotation}°": share(score_real(matcher, limits, folders, rotation))
            for rotation in (0, 30)
        }
    cells |= {"photographs": share(score_retention(matcher, limits))}
    print(f"{weights}: {cells}", flush=True)
    return cells


def train(name: str, arguments: list[object], args: argparse.Namespace, epochs: int | None) -> Path:
    """Train a variant unless it is complete. Returns its folder."""
    run_dir = args.save / args.mode / name
    latest = run_dir / "latest.pth"
    resume: list[object] = []
    if latest.exists():
        content = read_checkpoint(latest, ["epoch", "config"])
        settings = content["config"]["settings"]
        if content["epoch"] >= settings[settings["stage"]]["train"]["epochs"]:
            print(f"\n{run_dir} is trained already; delete it to train again.")
            return run_dir
        resume = ["--resume"]
    run(
        "train_loftr_v3.py",
        "--name",
        name,
        "--mode",
        args.mode,
        "--save",
        args.save,
        "--data",
        args.data,
        *(
            resume
            or [
                "--config",
                args.config,
                "--precision",
                args.precision,
                *arguments,
                *(["--epoch", epochs] if epochs else []),
            ]
        ),
    )
    return run_dir


def study_accuracy(args: argparse.Namespace) -> str:
    """Train and score every variant; the table."""
    base = train("study_base", ["--stage", "base"], args, args.base_epoch)
    rows = {"base": score(base / "best.pth", args)}
    for index, (title, arguments) in enumerate(VARIANTS.items()):
        folder = train(
            f"study_{index}", ["--pretrained", base / "best.pth", *arguments], args, args.epoch
        )
        rows[title] = score(folder / "latest.pth", args)
    return as_table("variant", rows)


def as_table(corner: str, rows: dict[str, dict[str, str]]) -> str:
    """A Markdown table; columns as in the first row."""
    columns = list(next(iter(rows.values())))
    lines = [f"| {' | '.join([corner, *columns])} |", f"|{'---|' * (len(columns) + 1)}"]
    return "\n".join(
        lines
        + [
            f"| {' | '.join([title, *(cells[name] for name in columns)])} |"
            for title, cells in rows.items()
        ]
    )


# --- what freezing saves ---------------------------------------------------------------------------------------------


def measure_cost(
    config: LoFTRConfig, freeze: tuple[str, ...] | None, data: str, mode: str, steps: int
) -> dict[str, object]:
    """Seconds and peak memory of a training step in this process, on one batch of real views.

    Args:
        freeze: modules to freeze; None takes the config's.
    """
    torch.manual_seed(0)
    model = build_model(config.model)
    model.freeze(config.v3.freeze if freeze is None else freeze)
    model.train()
    views = GeneratedPairs(
        discover_samples(data, [mode])[0][: config.v3.train.batch_size], config.view
    )
    batch = default_collate(
        [views[ViewKey(1, index)] for index in range(config.v3.train.batch_size)]
    )
    step = VesselStep(model, config.v3.loss, torch.device("cpu"))
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], 1e-4)
    seconds, memory = [], []
    for _ in range(steps):
        reset_peak_memory(step.meter.device)
        output = step(model, batch)
        optimizer.zero_grad(set_to_none=True)
        output.losses["total"].backward()
        optimizer.step()
        step.end([])
        del output
        seconds.append(step.meter.last["seconds_per_step"])
        memory.append(step_memory_mb(step.meter.device))
    # The first steps allocate what the others use again.
    return {
        "parameters": count_parameters(model),
        "seconds": float(np.median(seconds[2:])),
        "memory": float(max(memory)),
    }


def study_cost(args: argparse.Namespace) -> str:
    """Measure frozen and unfrozen in turn, each in a process of its own, so that neither inherits the other's memory."""
    found: dict[str, list[dict]] = {name: [] for name in COST_VARIANTS}
    for _ in range(args.repeats):
        for name in COST_VARIANTS:
            command = [
                sys.executable,
                "-m",
                "benchmarks.loftr_study",
                "--measure",
                name,
                "--config",
                args.config,
                "--data",
                args.data,
                "--mode",
                args.mode,
                "--steps",
                args.steps,
            ]
            output = subprocess.run(
                [str(word) for word in command], check=True, capture_output=True, text=True
            ).stdout
            found[name].append(json.loads(output.strip().splitlines()[-1]))
    best = {
        name: {"seconds": min(r["seconds"] for r in runs), "memory": min(r["memory"] for r in runs)}
        for name, runs in found.items()
    }
    rows = {
        name: {
            "parameters": runs[0]["parameters"],
            "seconds per step": f"{best[name]['seconds']:.2f}",
            "peak memory, MB": f"{best[name]['memory']:.0f}",
        }
        for name, runs in found.items()
    }
    ratio = best["unfrozen"]["seconds"] / best["frozen"]["seconds"]
    saved = best["unfrozen"]["memory"] - best["frozen"]["memory"]
    return (
        as_table("", rows)
        + f"\n\nA frozen step is {ratio:.2f} times as fast and needs {saved:.0f} MB less."
    )


def write_into(doc: Path, text: str) -> None:
    """Replace what stands between the markers of a document.

    Raises:
        InputError: no such file or no markers.
    """
    content = doc.read_text(encoding="utf-8") if doc.is_file() else ""
    if not all(marker in content for marker in MARKERS):
        raise InputError(
            f"{doc}: no such file, or it lacks the lines {MARKERS[0]} and {MARKERS[1]}."
        )
    before, rest = content.split(MARKERS[0], 1)
    write_text_atomically(
        doc, f"{before}{MARKERS[0]}\n\n{text}\n\n{MARKERS[1]}{rest.split(MARKERS[1], 1)[1]}"
    )


def get_args_parser() -> argparse.ArgumentParser:
    """Arguments of the study."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--config", default=DEFAULT_CONFIG)
    parser.add_argument("--data", default=DEFAULT_DATA)
    parser.add_argument("--mode", default="cffa")
    parser.add_argument(
        "--real",
        type=Path,
        default=Path("../shared/data/real_pairs"),
        help="folders of real landmark pairs",
    )
    parser.add_argument("--save", type=Path, default=Path("save"), help="folder of all runs")
    parser.add_argument("--out", type=Path, default=Path("save/loftr_study"))
    parser.add_argument(
        "--doc", type=Path, help="document between whose markers the tables are written"
    )
    parser.add_argument(
        "--precision", default="32", choices=list(PRECISIONS), help="of the training"
    )
    parser.add_argument("--base_epoch", type=int, help="epochs of the base")
    parser.add_argument("--epoch", type=int, help="epochs of every variant")
    parser.add_argument("--only", choices=("accuracy", "cost"), help="one part of the study")
    parser.add_argument(
        "--steps",
        type=int,
        default=8,
        help="measured steps of a variant; the first two do not count",
    )
    parser.add_argument("--repeats", type=int, default=2, help="how often each variant is measured")
    parser.add_argument("--measure", choices=list(COST_VARIANTS), help=argparse.SUPPRESS)
    return parser


def main() -> None:
    """Run the study, print its tables and write them."""
    args = get_args_parser().parse_args()
    if args.steps < 3:
        raise InputError("--steps must be at least 3.")
    if args.measure:
        config = build(LoFTRConfig, read_yaml(args.config), args.config)
        print(
            json.dumps(
                measure_cost(config, COST_VARIANTS[args.measure], args.data, args.mode, args.steps)
            )
        )
        return
    if args.data == DEFAULT_DATA and not Path(args.data).exists():
        write_generated_set(Path(args.data), DEFAULT_EYES, processes=2)
    parts: dict[str, Callable[[argparse.Namespace], str]] = {
        "cost": study_cost,
        "accuracy": study_accuracy,
    }
    text = "\n\n".join(part(args) for name, part in parts.items() if args.only in (None, name))
    write_text_atomically(args.out / "table.md", text + "\n")
    if args.doc:
        write_into(args.doc, text)
    print(f"\n{text}\n\nWritten: {args.out / 'table.md'}")


if __name__ == "__main__":
    run_script(main)
