"""L_det: the detector is trained on the vessel junctions, in both images."""

from __future__ import annotations

import torch

from loss.common import Term, average, dice_loss
from loss.keypoint_places import draw_places
from loss.term_inputs import TermInputs

# Pixels near an admitted place are left out of L_det: a Gaussian spot is drawn at the place.
EXCLUDED_SPOT_WIDTH = 1.5  # its standard deviation, in units of the label's sigma; by hand
EXCLUDED_SPOT_HEIGHT = 0.1  # pixels where it is at least this high are left out; by hand


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
    """L_det of a batch, (B,); see :func:`detector_loss`."""
    return detector_loss(
        inputs.fixed.detector,
        inputs.batch["fixed_heatmap"],
        _valid_pixels(inputs, "fixed", inputs.places.in_fixed),
        inputs.moving.detector,
        inputs.batch["moving_heatmap"],
        _valid_pixels(inputs, "moving", inputs.places.in_moving),
    )


def _valid_pixels(inputs: TermInputs, role: str, places: list[torch.Tensor]) -> torch.Tensor:
    """(B, 1, H, W), 1 inside the field of view, except near admitted places that are not seeds.

    Admitted places are keypoints in L_pke. The seed labels of L_det do not contain them and would
    train them as background.
    """
    heatmap, settings = inputs.batch[f"{role}_heatmap"], inputs.settings
    spots = draw_places(
        torch.zeros_like(heatmap), places, EXCLUDED_SPOT_WIDTH * settings.junction_sigma_px
    )
    near_place = spots >= EXCLUDED_SPOT_HEIGHT
    is_seed = heatmap > settings.pke.seed_heat
    return inputs.batch[f"{role}_fov"] * (~near_place | is_seed)
