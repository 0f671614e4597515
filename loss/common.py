"""Parts that the loss terms share.

Every term is computed per sample, (B,), together with a mask of the samples that contributed. A
batch averages over *all* its samples, empty ones counting zero, so that the mean of the half
batches on two devices equals the loss of the whole batch on one.
"""

from __future__ import annotations

from typing import NamedTuple

import torch

DICE_SMOOTHING = 1.0  # pixels, chosen by hand


class Term(NamedTuple):
    """A loss term of a batch.

    Attributes:
        per_sample: (B,) float, zero (with graph) where not valid.
        valid: (B,) bool, samples that contributed.
    """

    per_sample: torch.Tensor
    valid: torch.Tensor

    def mean(self) -> torch.Tensor:
        """Scalar mean over the whole batch, empty samples counting zero."""
        return self.per_sample.mean()

    def n_empty(self) -> torch.Tensor:
        """Number of samples that did not contribute, a scalar."""
        return (~self.valid).sum()


def dice_loss(
    prediction: torch.Tensor,
    target: torch.Tensor,
    valid: torch.Tensor,
    smoothing: float = DICE_SMOOTHING,
) -> Term:
    """Soft Dice loss inside a valid region (SuperRetina, ECCV 2022: loss of the detector).

    ``1 - (2 sum(p t) + s) / (sum(p p) + sum(t t) + s)``, sums over valid pixels.

    Args:
        prediction, target: (B, 1, H, W) in [0, 1]. Gradients flow into both.
        valid: (B, 1, H, W), 0 or 1.
        smoothing: s, pixels; with an empty target it keeps small predictions at a small loss.

    Returns:
        Per-sample values in [0, 1]; a sample without a valid pixel is empty.
    """
    dims = (1, 2, 3)
    overlap = (prediction * target * valid).sum(dims)
    size = ((prediction**2 + target**2) * valid).sum(dims)
    has_pixels = valid.sum(dims) > 0
    loss = 1.0 - (2.0 * overlap + smoothing) / (size + smoothing)
    return Term(loss * has_pixels, has_pixels)


def average(first: Term, second: Term) -> Term:
    """Mean of two terms (B,) of the same samples; a sample is valid if either part is."""
    return Term(0.5 * (first.per_sample + second.per_sample), first.valid | second.valid)
