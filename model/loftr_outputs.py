"""Results of the stages of :class:`model.loftr_vessel.LoFTRVessel`."""

from __future__ import annotations

from typing import NamedTuple

import torch

from geometry.matrices import Size


class PairFeatures(NamedTuple):
    """Output of the network for a batch of pairs, for training.

    Attributes:
        similarity: (B, L, S) float32 logits of the dual softmax, fixed cells against moving cells.
        offset_px: (M, 2) float32, result of the fine stage at each selected match: position of the
            fixed cell's centre relative to the moving cell's centre; moving pixels (x, y), at most
            ``HALF_WINDOW_PX`` along either axis.
        spread: (M,) float32, standard deviation of the fine heatmap, in half windows.
    """

    similarity: torch.Tensor
    offset_px: torch.Tensor
    spread: torch.Tensor


class LoFTRFeatures(NamedTuple):
    """Output of the backbone for one image.

    Attributes:
        tokens: (1, L, C) coarse features with their positional encoding.
        fine: (1, C', H / 2, W / 2) fine map.
        grid: rows and columns of coarse cells; L is their product.
    """

    tokens: torch.Tensor
    fine: torch.Tensor
    grid: Size


class FoundMatches(NamedTuple):
    """Matches of one pair.

    Attributes:
        fixed_cell, moving_cell: (K,) int64 numbers of the cells.
        offset_px: (K, 2) float32, from the moving cell's centre, moving pixels (x, y).
        confidence: (K,) float32 in [0, 1], product of both softmax probabilities.
    """

    fixed_cell: torch.Tensor
    moving_cell: torch.Tensor
    offset_px: torch.Tensor
    confidence: torch.Tensor


class PairTokens(NamedTuple):
    """Coarse and fine features of both images, the inputs of the fine stage.

    Attributes:
        fixed, moving: (B, L, C) and (B, S, C) coarse features after the transformer.
        fixed_fine, moving_fine: (B, C', H / 2, W / 2) fine maps.
    """

    fixed: torch.Tensor
    moving: torch.Tensor
    fixed_fine: torch.Tensor
    moving_fine: torch.Tensor
