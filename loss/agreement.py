"""How well the student's own matches agree with the transform of a sample.

The transform of a teaching pair may be wrong. Descriptor matches do not know it, so a sample whose
matches keep landing elsewhere has a wrong transform, or images that the network cannot match.
"""

from __future__ import annotations

from typing import NamedTuple

import torch

from geometry.points import warp_points
from loss.keypoint_places import in_mask
from loss.term_inputs import TermInputs


class Agreement(NamedTuple):
    """Matches of one view of a sample, compared with its transform.

    Attributes:
        key: of the sample.
        form: of the sample.
        n_matches: mutual nearest neighbours of the detections inside the overlap.
        n_right: those whose moving point is near the mapped fixed point.
        expected_right: number of right ones if each fixed point of a match had been matched to a
            moving detection at random.
    """

    key: str
    form: str
    n_matches: int
    n_right: int
    expected_right: float


@torch.no_grad()
def count_agreeing(inputs: TermInputs) -> list[Agreement]:
    """Mutual nearest neighbours by descriptor, and how many the transform confirms.

    Right is a match whose points are at most ``pke.max_reprojection_px``, or the tolerance of the
    sample if that is larger, from each other, moving pixels.

    Args:
        inputs: features and supervision of the batch.

    Returns:
        One entry per sample, in the order of the batch.
    """
    agreements = []
    for index, (key, form) in enumerate(
        zip(inputs.batch["key"], inputs.batch["form"], strict=True)
    ):
        fixed = inputs.fixed_detections.points[index]
        fixed = fixed[in_mask(fixed, inputs.overlap[index])]
        moving = inputs.moving_detections.points[index]
        moving = moving[in_mask(moving, inputs.moving_overlap[index])]
        if len(fixed) == 0 or len(moving) == 0:
            agreements.append(Agreement(key, form, 0, 0, 0.0))
            continue
        radius_px = max(inputs.settings.pke.max_reprojection_px, inputs.tolerances.in_moving[index])
        mapped = warp_points(fixed, inputs.batch["H_fix_to_mov"][index])
        is_near = torch.cdist(mapped, moving) <= radius_px
        rows, columns = _mutual_neighbours(inputs, index, fixed, moving)
        n_right = is_near[rows, columns].sum()
        n_near = is_near[rows].sum()
        agreements.append(
            Agreement(key, form, len(rows), int(n_right), float(n_near) / len(moving))
        )
    return agreements


def _mutual_neighbours(
    inputs: TermInputs, index: int, fixed: torch.Tensor, moving: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Rows of fixed (N, 2) and of moving points (M, 2) of pair ``index`` that match, both (K,)."""
    view = slice(index, index + 1)
    similarity = (
        inputs.sample_descriptors(inputs.fixed.descriptors[view], fixed[None])[0].float()
        @ inputs.sample_descriptors(inputs.moving.descriptors[view], moving[None])[0].float().T
    )
    nearest = similarity.argmax(1)
    rows = torch.arange(len(fixed), device=fixed.device)
    mutual = similarity.argmax(0)[nearest] == rows
    return rows[mutual], nearest[mutual]
