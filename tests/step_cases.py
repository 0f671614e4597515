"""Seeded batches of the joint objective whose results are recorded in ``records/joint_step.npz``.

The record was made by the objective that looped over the samples of a batch.
``python tests/step_cases.py`` (with ``PYTHONPATH=.``) writes it again, from the objective as it is.
"""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple

import numpy as np
import torch
from torch.nn import functional as F

from dataset.junctions import gaussian_heatmap
from geometry.matrices import Size, affine_about, image_centre
from geometry.points import warp_points
from loss.joint_objective import TERMS, JointObjective, ObjectiveResult, ObjectiveSettings
from loss.term_inputs import AnchorShares
from loss.value_map import Observation, PKESettings, ValueMap
from registration.keypoints import find_keypoints, sample_descriptors

RECORD = Path(__file__).parent / "records" / "joint_step.npz"
FIXED_SIZE, MOVING_SIZE, OWN_SIZE = (64, 96), (80, 72), (128, 160)  # pixels
STRIDE, DIM = 4, 16  # pixels per cell of the descriptor maps, and their channels
N_PLACES, N_ANCHORS, N_STEPS = 40, 48, 3
N_PATTERNS = 4  # random sign patterns on which a gradient is projected


class Case(NamedTuple):
    """A seeded run of a few steps with one value map.

    Attributes:
        forms: of the samples; their number is the batch size.
        tolerance_px: of each sample, fixed pixels.
        labelled: of each sample, whether it has junctions.
        empty: samples without a field of view.
        silent: samples without a detection.
        levels: number of values of a detector map, so that neighbours are equal; 0 = continuous.
        max_keypoints: per image.
        settings: of the objective.
    """

    forms: tuple[str, ...]
    tolerance_px: tuple[float, ...]
    labelled: tuple[bool, ...]
    empty: tuple[int, ...] = ()
    silent: tuple[int, ...] = ()
    levels: int = 0
    max_keypoints: int = 64
    settings: ObjectiveSettings = ObjectiveSettings()


PKE = PKESettings(admit_value=0.5, learning_rate=0.4, min_probability=0.1)
CASES = {
    "generated": Case(
        ("generated",) * 4, (0.0,) * 4, (True,) * 4, settings=ObjectiveSettings(pke=PKE)
    ),
    "real": Case(
        ("generated", "landmarks", "registered", "self", "landmarks", "generated"),
        (0.0, 3.0, 5.0, 0.0, 2.0, 0.0),
        (True, False, True, False, False, True),
        empty=(4,),
        silent=(5,),
        settings=ObjectiveSettings(pke=PKE, weights=dict.fromkeys(TERMS, 0.7)),
    ),
    "unlabelled": Case(
        ("landmarks", "self"),
        (0.0, 0.0),
        (False, False),
        max_keypoints=12,
        settings=ObjectiveSettings(pke=PKE, anchors=AnchorShares(0.5, 0.4)),
    ),
    "equal": Case(
        ("generated",) * 3,
        (0.0,) * 3,
        (True,) * 3,
        levels=12,
        max_keypoints=24,
        settings=ObjectiveSettings(
            descriptor="triplet",
            ignore_px=0.0,
            pke=PKESettings(early_partner_probability=0.7, early_views=2, learning_rate=0.6),
        ),
    ),
}


def objective_of(case: Case) -> JointObjective:
    """The objective of a case."""
    pke = case.settings.pke
    return JointObjective(
        case.settings,
        lambda maps, points: sample_descriptors(maps, points, STRIDE),
        lambda maps, allowed: find_keypoints(
            maps, pke.min_probability, 3, case.max_keypoints, allowed, pke.border_px
        ),
        tuple(dict.fromkeys(("generated", *case.forms))),
    )


class Sample(NamedTuple):
    """Places of one eye with their descriptors, and what its two images show of them."""

    places: np.ndarray  # (N, 2), own frame
    vectors: np.ndarray  # (N, DIM)
    heights: np.ndarray  # (2, N), of the spots of each image


def make_sample(rng: np.random.Generator) -> Sample:
    """A random sample; every fifth place of an image is not shown by it."""
    places = rng.uniform((8, 8), (OWN_SIZE[1] - 8, OWN_SIZE[0] - 8), (N_PLACES, 2))
    heights = rng.uniform(0.2, 1.0, (2, N_PLACES)) * (rng.random((2, N_PLACES)) > 0.2)
    return Sample(places, rng.normal(size=(N_PLACES, DIM)), heights)


def rasters(
    rng: np.random.Generator, sample: Sample, role: int, points: np.ndarray, size: Size, levels: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Detector map (H, W), descriptor map (DIM, h, w) and junctions (H, W) of an image."""
    detector = np.zeros(size, dtype=np.float32)
    for point, height in zip(points, sample.heights[role], strict=True):
        spot = height * gaussian_heatmap(point[None], size, 1.5).astype(np.float32)
        detector = np.maximum(detector, spot)
    if levels:
        detector = np.round(detector * levels) / levels
    cells = (size[0] // STRIDE, size[1] // STRIDE)
    maps = rng.normal(size=(DIM, *cells)).astype(np.float32)
    for point, vector in zip(points, sample.vectors, strict=True):
        x, y = np.floor(point / STRIDE).astype(int)
        maps[:, max(y, 0) : y + 1, max(x, 0) : x + 1] = 2.0 * vector[:, None, None]
    return detector, maps, gaussian_heatmap(points[:10], size, 2.0).astype(np.float32)


def make_batch(case: Case, seed: int) -> tuple[SimpleNamespace, SimpleNamespace, dict[str, Any]]:
    """Maps of both images, with gradients, and the batch of one step.

    Args:
        case: what the samples are like.
        seed: of the views; the eyes are the same for all seeds.
    """
    eyes, rng = np.random.default_rng(1), np.random.default_rng(seed)
    lists: dict[str, list[Any]] = {}
    for index, form in enumerate(case.forms):
        sample = make_sample(eyes)
        centres = image_centre(OWN_SIZE), image_centre(FIXED_SIZE), image_centre(MOVING_SIZE)
        H_own_to_fix = affine_about(
            rng.uniform(-30, 30), 0.6, 0.05, centres[0] + rng.uniform(-6, 6, 2), centres[1]
        )
        H = affine_about(rng.uniform(-40, 40), 0.95, 0.03, centres[1], centres[2])
        fixed_points = warp_points(sample.places, H_own_to_fix)
        jitter = rng.normal(0, 0.2 + 0.5 * case.tolerance_px[index], fixed_points.shape)
        moving_points = warp_points(fixed_points, H) + jitter
        images = [
            rasters(rng, sample, role, points, size, case.levels)
            for role, (points, size) in enumerate(
                ((fixed_points, FIXED_SIZE), (moving_points, MOVING_SIZE))
            )
        ]
        shown = 0.0 if index in case.silent else 1.0
        labelled = float(case.labelled[index])
        anchors = rng.uniform(2, 62, (N_ANCHORS, 2))
        n_anchors = 0 if index in case.empty else int(rng.integers(N_ANCHORS // 2, N_ANCHORS + 1))
        row = {
            "key": f"eye_{index}",
            "form": form,
            "tolerance_px": case.tolerance_px[index],
            "has_junctions": labelled,
            "H_fix_to_own": np.linalg.inv(H_own_to_fix),
            "H_fix_to_mov": H,
            "anchors": anchors,
            "anchor_valid": np.arange(N_ANCHORS) < n_anchors,
        }
        for role, (detector, maps, heatmap) in zip(("fixed", "moving"), images, strict=True):
            fov = np.ones(detector.shape, dtype=np.float32)
            fov[:, : int(rng.integers(0, 8))] = 0.0
            row |= {
                f"{role}_heatmap": labelled * heatmap[None],
                f"{role}_fov": fov[None] * (index not in case.empty),
                f"{role}_detector": shown * detector[None],
                f"{role}_descriptors": maps,
            }
        for name, value in row.items():
            lists.setdefault(name, []).append(value)
    batch = {
        name: values
        if isinstance(values[0], str)
        else torch.from_numpy(np.stack(values)).to(
            torch.bool if name == "anchor_valid" else torch.float32
        )
        for name, values in lists.items()
    }
    fixed, moving = (
        SimpleNamespace(
            detector=batch.pop(f"{role}_detector").requires_grad_(),
            descriptors=F.normalize(batch.pop(f"{role}_descriptors"), dim=1).requires_grad_(),
        )
        for role in ("fixed", "moving")
    )
    return fixed, moving, batch


def filled_map(case: Case) -> ValueMap:
    """A value map that admits some places of every second eye, and remembers others."""
    eyes, memory = np.random.default_rng(1), ValueMap(case.settings.pke)
    for index in range(len(case.forms)):
        places = torch.from_numpy(make_sample(eyes).places).float()
        if index % 2 == 0:
            for chosen in (places[:24], places[:12]):
                memory.apply([Observation(f"eye_{index}", chosen, places[:0])])
    return memory


def figures_of(
    result: ObjectiveResult, maps: tuple[SimpleNamespace, SimpleNamespace]
) -> dict[str, np.ndarray]:
    """Everything that a step yields, by name; calls ``backward`` on the total loss."""
    found = {f"loss {name}": value.detach().numpy() for name, value in result.losses.items()}
    found |= {f"count {name}": np.float64(float(each)) for name, each in result.counts.items()}
    found |= {f"n_valid {name}": np.float64(float(each)) for name, each in result.n_valid.items()}
    result.losses["total"].backward()
    for role, each in zip(("fixed", "moving"), maps, strict=True):
        for name in ("detector", "descriptors"):
            gradient = getattr(each, name).grad.flatten(1).double().numpy()
            signs = np.random.default_rng(5).choice([-1.0, 1.0], (gradient.shape[1], N_PATTERNS))
            norms = np.linalg.norm(gradient, axis=1, keepdims=True)
            found[f"gradient {role} {name}"] = np.concatenate([norms, gradient @ signs], axis=1)
    for index, (places, agreement) in enumerate(result.observations.unpacked()):
        found[f"passed {index}"] = places.passed.numpy()
        found[f"missed {index}"] = places.missed.numpy()
        found[f"agreement {index}"] = np.array(agreement[2:], dtype=np.float64)
    return found


def run_case(name: str) -> list[dict[str, np.ndarray]]:
    """Figures of each step of a case; the value map learns from each."""
    case = CASES[name]
    objective, memory, steps = objective_of(case), filled_map(case), []
    for step in range(N_STEPS):
        fixed, moving, batch = make_batch(case, 10 + step)
        result = objective(fixed, moving, batch, memory)
        steps.append(figures_of(result, (fixed, moving)))
        memory.apply([each.places for each in result.observations.unpacked()])
    return steps


def write_record() -> None:
    """Write the record of all cases."""
    content = {
        f"{case}/{step}/{name}": value
        for case in CASES
        for step, figures in enumerate(run_case(case))
        for name, value in figures.items()
    }
    RECORD.parent.mkdir(exist_ok=True)
    np.savez_compressed(RECORD, **content)


if __name__ == "__main__":
    write_record()
