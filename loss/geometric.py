"""L_geo: the detector maps of both images agree after warping."""

from __future__ import annotations

import torch

from geometry.rasters import warp_image
from loss.common import Term, dice_loss
from loss.term_inputs import TermInputs


def geometric_loss(
    fixed_detector: torch.Tensor,
    moving_detector: torch.Tensor,
    H_fix_to_mov: torch.Tensor,
    overlap: torch.Tensor,
) -> Term:
    """``L_geo = Dice(D_fix, D_mov warped into the fixed frame)`` inside the overlap.

    Two equal constant maps have a Dice loss of 0, so the term starts near 0, rises while the
    detector begins to respond, and is minimised from there on. Subtracting each map's
    background first was worse: it penalises the responses of an untrained detector (L_det after
    200 steps: 0.98 with, 0.74 without subtraction).

    Args:
        fixed_detector: (B, 1, H, W) in [0, 1]. Gradients flow into both maps.
        moving_detector: (B, 1, Hm, Wm) in [0, 1].
        H_fix_to_mov: (B, 3, 3), pixels.
        overlap: (B, 1, H, W), 1 where both images show retina, fixed frame. Outside of it a
            correct detection has no counterpart and must not be penalised.
    """
    height, width = fixed_detector.shape[-2:]
    warped = warp_image(moving_detector, H_fix_to_mov, (height, width))
    return dice_loss(fixed_detector, warped, overlap)


def geometric_term(inputs: TermInputs) -> Term:
    """L_geo of a batch, (B,); see :func:`geometric_loss`."""
    return geometric_loss(
        inputs.fixed.detector,
        inputs.moving.detector,
        inputs.batch["H_fix_to_mov"],
        inputs.overlap,
    )
