"""L_det: the detector learns the vessel junctions, in both images."""

from __future__ import annotations

import torch

from loss.common import Term, average, dice_loss


def detector_loss(
    fixed_detector: torch.Tensor,
    fixed_heatmap: torch.Tensor,
    fixed_valid: torch.Tensor,
    moving_detector: torch.Tensor,
    moving_heatmap: torch.Tensor,
    moving_valid: torch.Tensor,
) -> Term:
    """``L_det = (Dice(D_fix, Y_fix) + Dice(D_mov, Y_mov)) / 2``.

    Args:
        *_detector: (B, 1, H, W) probabilities.
        *_heatmap: (B, 1, H, W) Gaussian heatmaps of the junctions in the frame of each image.
        *_valid: (B, 1, H, W), 1 where the heatmap tells the truth (inside the field of view).
    """
    return average(
        dice_loss(fixed_detector, fixed_heatmap, fixed_valid),
        dice_loss(moving_detector, moving_heatmap, moving_valid),
    )
