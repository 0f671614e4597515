"""How well the student's own matches agree with the transform of a sample.

The transform of a teaching pair may be wrong. Descriptor matches do not know it, so a sample whose
matches keep landing elsewhere has a wrong transform, or images that the network cannot match.
"""

from __future__ import annotations

from typing import NamedTuple

import torch

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


class MatchCounts(NamedTuple):
    """Counts of the matches of a batch, one number for each sample.

    Attributes:
        n_matches, n_right: (B,) long, see :class:`Agreement`.
        n_near: (B,) long, pairs of the fixed point of a match and a moving detection near its
            mapped place.
        n_moving: (B,) long, moving detections inside the overlap.
    """

    n_matches: torch.Tensor
    n_right: torch.Tensor
    n_near: torch.Tensor
    n_moving: torch.Tensor


@torch.no_grad()
def count_agreeing(inputs: TermInputs) -> MatchCounts:
    """Mutual nearest neighbours by descriptor, and how many the transform confirms.

    Right is a match whose points are at most ``pke.max_reprojection_px``, or the tolerance of the
    sample if that is larger, from each other, moving pixels.

    Args:
        inputs: features and supervision of the batch.
    """
    fixed, moving = inputs.fixed_detections.in_overlap, inputs.moving_detections.in_overlap
    radius_px = inputs.tolerances.in_moving.clamp(min=inputs.settings.pke.max_reprojection_px)
    gaps = inputs.fixed_detections.in_other.gaps(moving)  # infinite to padding
    is_near = gaps <= radius_px[:, None, None]
    similarity = torch.bmm(
        inputs.fixed_detections.descriptors, inputs.moving_detections.descriptors.mT
    )
    matched, nearest = _mutual_neighbours(similarity, fixed.valid, moving.valid)
    right = is_near.gather(2, nearest[..., None])[..., 0] & matched
    near = is_near & matched[..., None]
    return MatchCounts(matched.sum(1), right.sum(1), near.sum((1, 2)), moving.numbers())


def _mutual_neighbours(
    similarity: torch.Tensor, fixed: torch.Tensor, moving: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Which fixed points have a match, (B, N) bool, and the moving point of each, (B, N) long.

    Args:
        similarity: (B, N, M) of the descriptors.
        fixed, moving: (B, N) and (B, M) bool, points that may match.
    """
    nearest = similarity.masked_fill(~moving[:, None], float("-inf")).argmax(2)
    back = similarity.masked_fill(~fixed[:, :, None], float("-inf")).argmax(1)
    rows = torch.arange(nearest.shape[1], device=nearest.device)
    mutual = (back.gather(1, nearest) == rows) & fixed
    return mutual & moving.gather(1, nearest), nearest
