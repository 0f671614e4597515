"""Pairs whose detections and descriptors are placed by hand, for the tests of the losses."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from dataset.junctions import gaussian_heatmap
from geometry.points import pixel_grid
from loss.common import Term
from loss.joint_objective import (
    TERMS,
    JointObjective,
    LossTerm,
    ObjectiveResult,
    ObjectiveSettings,
)
from loss.term_inputs import TermInputs
from loss.value_map import ValueMap
from registration.keypoints import find_keypoints, sample_descriptors

SIZE, KEY = (72, 96), "landmarks_1"
SIGMA_PX, PEAK = 2.0, 0.9  # of the spots in the detector maps
Places = dict[str, tuple[float, float]]


def vector(name: str) -> torch.Tensor:
    """A unit vector (32,) for each name."""
    generator = torch.Generator().manual_seed(sum(map(ord, name)))
    return F.normalize(torch.randn(32, generator=generator), dim=0)


def features(places: Places, radius_px: float = 2.5) -> SimpleNamespace:
    """Maps with a spot at each place, and its own vector up to ``radius_px`` around it.

    Args:
        places: name to pixel; the vector is that of the first word of the name.
        radius_px: of the area with the vector.
    """
    points = np.array(list(places.values()), dtype=float).reshape(-1, 2)
    detector = PEAK * torch.from_numpy(gaussian_heatmap(points, SIZE, SIGMA_PX))[None, None]
    descriptors = vector("background")[None, :, None, None].repeat(1, 1, *SIZE)
    for name, point in places.items():
        near = (pixel_grid(SIZE) - torch.tensor(point)).norm(dim=1).reshape(SIZE) <= radius_px
        descriptors[0, :, near] = vector(name.split()[0])[:, None]
    return SimpleNamespace(
        detector=detector.requires_grad_(), descriptors=descriptors.requires_grad_()
    )


def pair_batch(
    tolerance_px: float = 0.0,
    labelled: bool = False,
    H_fix_to_mov: torch.Tensor | None = None,
    anchors: Places | None = None,
    form: str = "landmarks",
) -> dict:
    """A batch of one pair without junctions; ``H_fix_to_mov`` (3, 3) is the identity by default."""
    points = torch.tensor(list((anchors or {}).values())).reshape(1, -1, 2)
    padded = torch.cat([points, torch.zeros(1, 8 - points.shape[1], 2)], 1)
    return {
        "key": [KEY],
        "form": [form],
        "tolerance_px": torch.tensor([tolerance_px]),
        "has_junctions": torch.tensor([float(labelled)]),
        "H_fix_to_own": torch.eye(3)[None],
        "H_fix_to_mov": torch.eye(3)[None] if H_fix_to_mov is None else H_fix_to_mov[None],
        "fixed_heatmap": torch.zeros(1, 1, *SIZE),
        "moving_heatmap": torch.zeros(1, 1, *SIZE),
        "fixed_fov": torch.ones(1, 1, *SIZE),
        "moving_fov": torch.ones(1, 1, *SIZE),
        "anchors": padded,
        "anchor_valid": torch.arange(8)[None] < points.shape[1],
    }


def run_pair(
    fixed: SimpleNamespace,
    moving: SimpleNamespace,
    batch: dict,
    value_map: ValueMap | None = None,
    forms: tuple[str, ...] = ("generated", "landmarks"),
    **settings: object,
) -> ObjectiveResult:
    """The joint objective of maps with one cell per pixel."""
    objective = JointObjective(
        ObjectiveSettings(**settings),
        lambda maps, points: sample_descriptors(maps, points, 1),
        lambda maps, allowed: find_keypoints(maps, 0.1, 4, 256, allowed),
        forms,
    )
    return objective(fixed, moving, batch, value_map or ValueMap())


def inputs_of(monkeypatch: pytest.MonkeyPatch, *arguments: object, **options: object) -> TermInputs:
    """What :func:`run_pair` gives to the terms."""
    seen: list[TermInputs] = []

    def spy(inputs: TermInputs) -> Term:
        seen.append(inputs)
        return Term(torch.zeros(1), torch.ones(1, dtype=torch.bool))

    monkeypatch.setitem(TERMS, "spy", LossTerm(spy))
    run_pair(*arguments, **options)
    return seen[0]
