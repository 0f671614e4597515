"""kornia's LoFTR modules: configuration, names, positional encoding."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

import torch
from kornia.feature.loftr.loftr import default_cfg
from kornia.feature.loftr.utils.position_encoding import PositionEncodingSine

from geometry.matrices import Size

KORNIA_DEFAULTS: dict[str, Any] = default_cfg
COARSE_STRIDE = 8  # image pixels per coarse cell
FINE_STRIDE = 2  # image pixels per cell of the fine map
# Half the side of the fine window, image pixels: the largest offset of the fine stage.
HALF_WINDOW_PX = float(KORNIA_DEFAULTS["fine_window_size"] // 2 * FINE_STRIDE)
# kornia's attribute names, which are also the first part of the keys of published checkpoints.
MODULES = ("backbone", "pos_encoding", "loftr_coarse", "fine_preprocess", "loftr_fine")


class ScaledPositions(PositionEncodingSine):
    """kornia's sinusoidal positional encoding, multiplied by a factor.

    Args:
        d_model: channels.
        factor: 1 as published.
    """

    def __init__(self, d_model: int, factor: float) -> None:
        self.factor = factor
        super().__init__(d_model, temp_bug_fix=True)

    def _create_position_encoding(self, max_shape: Size) -> torch.Tensor:
        return self.factor * super()._create_position_encoding(max_shape)


def kornia_config(
    initial_dim: int,
    block_dims: Sequence[int],
    heads: int,
    coarse_layers: int,
    fine_layers: int,
    temperature: float,
) -> dict[str, Any]:
    """kornia's configuration of a LoFTR of the given size.

    The positional encoding is the corrected one (``temp_bug_fix``), as in MINIMA's checkpoint. The
    arguments are described in :class:`model.loftr_vessel.LoFTRSettings`.
    """
    config = copy.deepcopy(KORNIA_DEFAULTS)
    config["resnetfpn"] = {"initial_dim": initial_dim, "block_dims": list(block_dims)}
    for part, width, layers in (
        ("coarse", block_dims[2], coarse_layers),
        ("fine", block_dims[0], fine_layers),
    ):
        config[part] |= {
            "d_model": width,
            "d_ffn": width,
            "nhead": heads,
            "layer_names": ["self", "cross"] * layers,
        }
    config["coarse"]["temp_bug_fix"] = True
    # kornia neither removes a border nor applies a threshold: the matcher does both, from the
    # field of view and its own settings.
    config["match_coarse"] |= {"dsmax_temperature": temperature, "border_rm": 0, "thr": 0.0}
    return config
