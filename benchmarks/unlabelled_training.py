"""Does the detector survive training without junction labels?

    python -m benchmarks.unlabelled_training

Trains the shipped weights for a few steps on views of generated pairs, once with their junction
labels and once without: ``has_junctions`` and the heatmaps are 0 then, as those of real pairs. Then
only L_geo and L_pke train the detector, which could fall silent or respond everywhere. Prints, for
views of other eyes before and after, the number of detections of more than ``--probability`` and
their repeatability: the share of those that the other image could show that it shows within 3 px.

Writes nothing. With the defaults it takes 2 minutes on one core.
"""

from __future__ import annotations

import argparse
from typing import Any, NamedTuple

import torch
from torch import nn
from torch.utils.data import default_collate

from benchmarks.documents import markdown_table
from dataset.aligned_pairs import AlignedPairs, ViewKey
from dataset.samples import discover_samples
from dataset.views import ViewGeometry
from geometry.matrices import size_of_raster
from geometry.point_sets import in_mask
from geometry.points import inside, warp_points
from registration.keypoints import extract_keypoints
from training.step_output import read_outputs
from training.superretina_step import SuperRetinaConfig, SuperRetinaStep
from utils.checkpoint import load_strictly, read_checkpoint
from utils.config import build, read_config
from utils.errors import InputError, run_script

REPEAT_PX = 3.0  # pixels of the view
BORDER_PX = 4  # of the view, without detections
SCORED_SIDE = 2  # side of the views that are scored, over that of the views that train


class DetectorState(NamedTuple):
    """Detections in views that did not train.

    Attributes:
        fixed, moving: per view.
        repeatability: over all views and both images, [0, 1]; 0 without detections.
    """

    fixed: float
    moving: float
    repeatability: float


def without_labels(batch: dict[str, Any]) -> dict[str, Any]:
    """A batch of views as if nobody had labelled its junctions.

    Args:
        batch: collated views.
    """
    names = ("has_junctions", "fixed_heatmap", "moving_heatmap")
    return batch | {name: torch.zeros_like(batch[name]) for name in names}


@torch.no_grad()
def score_detector(
    model: nn.Module, batches: list[dict[str, Any]], probability: float
) -> DetectorState:
    """Count detections and those that both images show.

    Args:
        model: the network; it is left in training mode.
        batches: collated views.
        probability: least one of a detection.
    """
    model.eval()
    counts, n_repeated, n_visible, n_views = [0, 0], 0, 0, 0
    for batch in batches:
        found = [
            extract_keypoints(
                maps.detector, probability, 4, 1024, batch[f"{role}_fov"], border_px=BORDER_PX
            )
            for role, maps in zip(
                ("fixed", "moving"),
                model(batch["fixed_image"], batch["moving_image"]),
                strict=True,
            )
        ]
        for index, H in enumerate(batch["H_fix_to_mov"]):
            fixed, moving = (each[index][0] for each in found)
            counts = [counts[0] + len(fixed), counts[1] + len(moving)]
            for own, other, matrix, role in (
                (fixed, moving, H, "moving"),
                (moving, fixed, torch.linalg.inv(H), "fixed"),
            ):
                mapped = warp_points(own, matrix)
                field = batch[f"{role}_fov"][index]
                seen = in_mask(mapped[None], field[None])[0]
                mapped = mapped[seen & inside(mapped, size_of_raster(field), BORDER_PX)]
                n_visible += len(mapped)
                n_repeated += int((torch.cdist(mapped, other) <= REPEAT_PX).any(1).sum())
            n_views += 1
    model.train()
    return DetectorState(counts[0] / n_views, counts[1] / n_views, n_repeated / max(n_visible, 1))


def train(labelled: bool, args: argparse.Namespace) -> list[DetectorState]:
    """Train the weights and score them before, in the middle and at the end.

    Args:
        labelled: whether the views keep their labels.
        args: of the command.

    Raises:
        InputError: missing data, weights or configuration, or too few eyes.
    """
    config = build(SuperRetinaConfig, read_config(args.config), args.config)
    torch.manual_seed(args.seed)
    model = config.build_model()
    load_strictly(model, read_checkpoint(args.weights)["model"], args.weights)
    samples = sorted(discover_samples(args.data, [args.mode])[0], key=lambda each: each.key)
    eyes = sorted({each.eye for each in samples})
    if len(eyes) < 2:
        raise InputError(f"{args.data}: needs at least two eyes, one of them to score.")
    training_eyes = set(eyes[: min(args.eyes, len(eyes) - 1)])
    own = [each for each in samples if each.eye in training_eyes]
    others = [each for each in samples if each.eye not in training_eyes][: args.scored]
    pairs = AlignedPairs(own, ViewGeometry(img_size=args.img_size), seed=args.seed)
    large = ViewGeometry(img_size=SCORED_SIDE * args.img_size)
    scored = AlignedPairs(others, large, seed=args.seed + 1)
    views = [default_collate([scored[ViewKey(0, index)]]) for index in range(len(others))]
    step, n = SuperRetinaStep(config, model), args.batch_size
    optimizer = torch.optim.AdamW(model.parameters(), lr=args.lr)
    states = [score_detector(model, views, args.probability)]
    for number in range(args.steps):
        keys = [divmod(number * n + index, len(own)) for index in range(n)]
        batch = default_collate([pairs[ViewKey(1 + epoch, index)] for epoch, index in keys])
        output = step(model, batch if labelled else without_labels(batch))
        optimizer.zero_grad()
        output.losses["total"].backward()
        optimizer.step()
        (read,), _ = read_outputs([output])
        step.learn(read.observations)
        if number + 1 in (args.steps // 2, args.steps):
            states.append(score_detector(model, views, args.probability))
    return states


def get_args_parser() -> argparse.ArgumentParser:
    """Arguments of the command."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", default="data/generated", help="folder of generated pairs")
    parser.add_argument("--mode", default="cffa", help="kind of pairs")
    parser.add_argument("--config", default="configs/superretina_release.yaml")
    parser.add_argument("--weights", default="save/pretrained/superretina_multimodal.pth")
    parser.add_argument("--eyes", type=int, default=20, help="eyes that train")
    parser.add_argument("--scored", type=int, default=32, help="pairs of other eyes to score")
    parser.add_argument("--steps", type=int, default=60, help="training steps, at least 2")
    parser.add_argument("--batch_size", type=int, default=4, help="pairs per step")
    parser.add_argument("--img_size", type=int, default=128, help="side of the views, pixels")
    parser.add_argument("--lr", type=float, default=3e-4, help="learning rate of AdamW")
    parser.add_argument("--probability", type=float, default=0.3, help="least of a detection")
    parser.add_argument("--seed", type=int, default=0)
    return parser


def main() -> None:
    """Train with and without labels and print the table."""
    args = get_args_parser().parse_args()
    if min(args.steps // 2, args.batch_size, args.img_size, args.eyes, args.scored) < 1:
        raise InputError("--steps must be at least 2, the other numbers at least 1.")
    rows = {}
    for name, labelled in (("with labels", True), ("without labels", False)):
        for number, state in zip(
            (0, args.steps // 2, args.steps), train(labelled, args), strict=True
        ):
            rows[f"{name}, step {number}"] = {
                "detections per view: fixed": f"{state.fixed:.1f}",
                "moving": f"{state.moving:.1f}",
                "repeatability": f"{state.repeatability:.2f}",
            }
    print(markdown_table("views", rows))


if __name__ == "__main__":
    run_script(main)
