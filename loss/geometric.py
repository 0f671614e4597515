"""L_geo: both images have detections at corresponding places.

Two forms:

- :func:`agreement_loss` (term ``geo``): the detector map of each image is compared with its labels
  joined with the detections of the other image. Two silent maps have a loss near 1, two maps that
  agree one near 0.
- :func:`plan_loss` (term ``geo_plan``): Dice(D_fix, warp(D_mov)), as in the plan and in SuperRetina
  (Liu et al., ECCV 2022). Two silent maps have a loss of 0, so it rises while the detector begins
  to respond, and it slows the detector (docs/measured.md). It is logged for comparison.
"""

from __future__ import annotations

import torch

from geometry.point_sets import PointSet
from geometry.rasters import warp_image
from loss.common import Term, average, dice_loss
from loss.keypoint_places import draw_places
from loss.term_inputs import TermInputs
from loss.tolerance import moved_to_detections


def agreement_loss(
    fixed_detector: torch.Tensor,
    fixed_target: torch.Tensor,
    fixed_overlap: torch.Tensor,
    moving_detector: torch.Tensor,
    moving_target: torch.Tensor,
    moving_overlap: torch.Tensor,
) -> Term:
    """``L_geo = (Dice(D_fix, T_fix) + Dice(D_mov, T_mov)) / 2`` inside the overlap.

    Args:
        fixed_detector, moving_detector: (B, 1, H, W) probabilities, each in its own frame.
        fixed_target, moving_target: (B, 1, H, W) in [0, 1], without graph: the labels of the image
            joined with spots at the detections of the other image, mapped into its frame.
        fixed_overlap, moving_overlap: (B, 1, H, W), 1 where both images show retina, each in the
            frame of its image. Outside of it a correct detection has no counterpart and must not
            be penalised.
    """
    return average(
        dice_loss(fixed_detector, fixed_target, fixed_overlap),
        dice_loss(moving_detector, moving_target, moving_overlap),
    )


def geometric_term(inputs: TermInputs) -> Term:
    """L_geo of a batch, (B,); see :func:`agreement_loss`.

    A detection of the other image that has a detection of this image within the tolerance counts at
    the place of that one, because the transform is not exact enough to say otherwise.
    """
    batch, settings = inputs.batch, inputs.settings
    from_moving, from_fixed = (
        detections.in_other.only(detections.probabilities > settings.partner_probability).on(
            visible
        )
        for detections, visible in (
            (inputs.moving_detections, inputs.overlap),
            (inputs.fixed_detections, inputs.moving_overlap),
        )
    )

    def target(
        role: str,
        admitted: PointSet,
        partner: PointSet,
        own: PointSet,
        tolerance_px: torch.Tensor,
    ) -> torch.Tensor:
        """Labels of an image joined with spots at its admitted and its partner's detections."""
        if inputs.tolerances.inexact:
            partner = moved_to_detections(partner, own, tolerance_px)
        places = admitted.joined(partner)
        return draw_places(batch[f"{role}_heatmap"], places, settings.junction_sigma_px)

    return agreement_loss(
        inputs.fixed.detector,
        target(
            "fixed",
            inputs.places.in_fixed,
            from_moving,
            inputs.fixed_detections.points,
            inputs.tolerances.in_fixed,
        ),
        inputs.overlap,
        inputs.moving.detector,
        target(
            "moving",
            inputs.places.in_moving,
            from_fixed,
            inputs.moving_detections.points,
            inputs.tolerances.in_moving,
        ),
        inputs.moving_overlap,
    )


def plan_loss(
    fixed_detector: torch.Tensor,
    moving_detector: torch.Tensor,
    H_fix_to_mov: torch.Tensor,
    overlap: torch.Tensor,
) -> Term:
    """``Dice(D_fix, D_mov warped into the fixed frame)`` inside the overlap.

    Args:
        fixed_detector: (B, 1, H, W) in [0, 1]. Gradients flow into both maps.
        moving_detector: (B, 1, Hm, Wm) in [0, 1].
        H_fix_to_mov: (B, 3, 3), pixels.
        overlap: (B, 1, H, W), 1 where both images show retina, fixed frame.
    """
    height, width = fixed_detector.shape[-2:]
    warped = warp_image(moving_detector, H_fix_to_mov, (height, width))
    return dice_loss(fixed_detector, warped, overlap)


def plan_term(inputs: TermInputs) -> Term:
    """The plan's form of L_geo of a batch, (B,); see :func:`plan_loss`."""
    return plan_loss(
        inputs.fixed.detector,
        inputs.moving.detector,
        inputs.batch["H_fix_to_mov"],
        inputs.overlap,
    )
