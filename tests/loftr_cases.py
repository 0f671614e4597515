"""Images and a network that the tests of LoFTR share."""

from __future__ import annotations

import torch

from model.loftr_vessel import LoFTRSettings, LoFTRVessel


def textures(n: int = 2, side: int = 64, seed: int = 0) -> torch.Tensor:
    """Smooth random images: (n, 1, side, side) in [0, 1]."""
    noise = torch.rand(n, 1, side // 4, side // 4, generator=torch.Generator().manual_seed(seed))
    return torch.nn.functional.interpolate(
        noise, size=(side, side), mode="bicubic", align_corners=False
    ).clamp(0, 1)


def learner() -> LoFTRVessel:
    """A network that compares local texture, small enough to be overfitted to a few pairs."""
    torch.manual_seed(0)
    return LoFTRVessel(
        LoFTRSettings(
            stem="raw",
            initial_dim=16,
            block_dims=(16, 16, 32),
            heads=4,
            coarse_layers=1,
            temperature=0.07,
            unit_features=True,
            position_scale=0.0,
            cell_offset_px=0.0,
        )
    )
