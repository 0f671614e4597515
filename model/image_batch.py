"""The check of image batches that both networks share."""

from __future__ import annotations

import torch


def check_image_batch(image: torch.Tensor, size_multiple: int) -> None:
    """Refuse a batch of images that a network cannot process.

    Args:
        image: must be (B, 1, H, W), grey values in [0, 1].
        size_multiple: H and W must be multiples of this, pixels.

    Raises:
        ValueError: wrong number of dimensions or channels, or a size that is not a multiple.
    """
    if (
        image.ndim != 4
        or image.shape[1] != 1
        or any(side % size_multiple for side in image.shape[-2:])
    ):
        raise ValueError(
            f"image must be (B, 1, H, W) with H, W multiples of {size_multiple}, "
            f"not {tuple(image.shape)}"
        )
