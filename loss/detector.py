"""L_det: the detector is trained on the vessel junctions, in both images."""

from __future__ import annotations

import torch

from loss.common import Term, average, dice_loss
from loss.term_inputs import TermInputs


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
        fixed_detector, moving_detector: (B, 1, H, W) probabilities, each in its own frame.
        fixed_heatmap, moving_heatmap: (B, 1, H, W) in [0, 1], Gaussian spots at the junctions.
        fixed_valid, moving_valid: (B, 1, H, W), 1 where the heatmap is reliable.
    """
    return average(
        dice_loss(fixed_detector, fixed_heatmap, fixed_valid),
        dice_loss(moving_detector, moving_heatmap, moving_valid),
    )


def detector_term(inputs: TermInputs) -> Term:
    """L_det of a batch, (B,); see :func:`detector_loss`. Samples without labels are empty."""
    return detector_loss(
        inputs.fixed.detector,
        inputs.batch["fixed_heatmap"],
        _valid_pixels(inputs, "fixed"),
        inputs.moving.detector,
        inputs.batch["moving_heatmap"],
        _valid_pixels(inputs, "moving"),
    )


def _valid_pixels(inputs: TermInputs, role: str) -> torch.Tensor:
    """(B, 1, H, W), 1 inside the field of view, except near admitted places that are not seeds.

    0 everywhere for a sample without labels.

    Admitted places are keypoints in L_pke. The seed labels of L_det do not contain them and would
    train them as background.
    """
    is_seed = inputs.batch[f"{role}_heatmap"] > inputs.settings.pke.seed_heat
    labelled = inputs.batch["has_junctions"][:, None, None, None]
    return inputs.batch[f"{role}_fov"] * labelled * (~inputs.near_admitted[role] | is_seed)
