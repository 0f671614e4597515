"""L_geo: both images must be detected at the same places."""
from __future__ import annotations

import torch

from loss.common import Term, dice_loss
from utils.geometry import warp_image


def geometric_loss(fixed_detector: torch.Tensor, moving_detector: torch.Tensor, H_fix_to_mov: torch.Tensor,
                   overlap: torch.Tensor) -> Term:
    """``L_geo = Dice(D_fix, D_mov warped into the fixed frame)`` inside the overlap.

    Args:
        fixed_detector: (B, 1, H, W); moving_detector: (B, 1, Hm, Wm). Gradients flow into both.
        H_fix_to_mov: (B, 3, 3).
        overlap: (B, 1, H, W), 1 where both fields of view show retina: outside it a right detection has no partner and
            must not be punished.
    """
    warped = warp_image(moving_detector, H_fix_to_mov, tuple(fixed_detector.shape[-2:]))
    return dice_loss(fixed_detector, warped, overlap)
