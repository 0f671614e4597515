"""L_pke: progressive keypoint expansion (SuperRetina, ECCV 2022, section 3.2).

The seed labels are the vessel junctions of the mask; a retina has many more usable keypoints.
Places that the detector finds repeatedly become additional labels:

1. *Candidates* are detections of either image away from every seed, inside the overlap.
2. *Geometric test*: the detector of the other image responds at the mapped place, with a
   probability of at least ``partner_probability``.
3. *Content test*: the descriptor of the other image at the mapped place is nearer than that of any
   of its detections elsewhere, by a ratio.
4. The value map (``loss.value_map``) keeps, for each training sample in its own frame, how
   reliably each place passed; a place whose value reaches ``admit_value`` is *admitted* as
   a label.

The tests are in ``loss.candidates``. The expansion is active from the first step and needs no
schedule: an untrained network passes few tests, and rarely the same one twice.
"""

from __future__ import annotations

import torch

from geometry.point_sets import may_hold
from geometry.rasters import away_from_border
from loss.common import Term, average, dice_loss
from loss.keypoint_places import draw_places, near_places
from loss.term_inputs import TermInputs


def pke_loss(
    fixed_detector: torch.Tensor,
    fixed_label: torch.Tensor,
    fixed_valid: torch.Tensor,
    moving_detector: torch.Tensor,
    moving_label: torch.Tensor,
    moving_valid: torch.Tensor,
    n_admitted: torch.Tensor,
) -> Term:
    """``L_pke``: Dice of both detector maps against the labels expanded by the admitted places.

    Samples without an admitted place are empty: L_det already trains on their seeds.

    Args:
        fixed_detector, moving_detector: (B, 1, H, W) probabilities, each in its own frame.
        fixed_label, moving_label: (B, 1, H, W) in [0, 1], spots at seeds and admitted places.
        fixed_valid, moving_valid: (B, 1, H, W), 1 inside the field of view, without the
            unjudged detections of samples without seeds, see :func:`pke_term`.
        n_admitted: (B,) number of admitted places in view.
    """
    both = average(
        dice_loss(fixed_detector, fixed_label, fixed_valid),
        dice_loss(moving_detector, moving_label, moving_valid),
    )
    has_places = n_admitted > 0
    return Term(both.per_sample * has_places, both.valid & has_places)


def pke_term(inputs: TermInputs) -> Term:
    """L_pke of a batch, (B,); see :func:`pke_loss`.

    A sample without junction labels has no seeds: its target holds the admitted places only. Every
    other detection, also that of a junction, would be trained as background, although nobody said
    that it is wrong; it may be outside of the overlap, or not admitted yet. So the pixels near a
    detection of either image do not count there, unless they are near an admitted place, and
    neither does the border, where detections are not searched. What is left says: admitted places
    respond, and places where neither image has a detection stay silent. Detections that the other
    image does not repeat are L_geo's task.
    """
    batch, places = inputs.batch, inputs.places
    sigma_px = inputs.settings.junction_sigma_px
    return pke_loss(
        inputs.fixed.detector,
        draw_places(batch["fixed_heatmap"], places.in_fixed, sigma_px),
        _valid_pixels(inputs, "fixed"),
        inputs.moving.detector,
        draw_places(batch["moving_heatmap"], places.in_moving, sigma_px),
        _valid_pixels(inputs, "moving"),
        places.in_fixed.numbers() + places.in_moving.numbers(),
    )


def _valid_pixels(inputs: TermInputs, role: str) -> torch.Tensor:
    """(B, 1, H, W), 1 in the field of view; see :func:`pke_term` for samples without labels."""
    batch, fov = inputs.batch, inputs.batch[f"{role}_fov"]
    unlabelled = batch["has_junctions"] < 0.5
    if not may_hold(unlabelled):
        return fov
    own, other = inputs.fixed_detections, inputs.moving_detections
    if role == "moving":
        own, other = other, own
    detected = own.points.joined(other.in_other.on(fov))
    searched = away_from_border(fov, inputs.settings.pke.border_px)
    silent = searched & ~near_places(fov, detected, inputs.settings.junction_sigma_px)
    judged = silent | inputs.near_admitted[role]
    return torch.where(unlabelled[:, None, None, None], fov * judged, fov)
