"""L_geo: both images must be detected at the same places."""

from __future__ import annotations

import torch

from geometry.rasters import warp_image
from loss.common import Term, dice_loss


def geometric_loss(
    fixed_detector: torch.Tensor,
    moving_detector: torch.Tensor,
    H_fix_to_mov: torch.Tensor,
    overlap: torch.Tensor,
) -> Term:
    """``L_geo = Dice(D_fix, D_mov warped into the fixed frame)`` inside the overlap.

    Args:
        fixed_detector: (B, 1, H, W); moving_detector: (B, 1, Hm, Wm). Gradients flow into both.
        H_fix_to_mov: (B, 3, 3).
        overlap: (B, 1, H, W), 1 where both fields of view show retina: outside it a right detection has no partner and
            must not be punished.

    Two maps that are constant agree perfectly, so the term starts near 0, rises while the detector learns to answer at all,
    and is held down from there. Taking each map relative to its own background instead was tried: it punishes whatever an
    untrained detector says, and the detector fell silent (L_det 0.98 after 200 steps, against 0.74).
    """
    warped = warp_image(moving_detector, H_fix_to_mov, tuple(fixed_detector.shape[-2:]))
    return dice_loss(fixed_detector, warped, overlap)
