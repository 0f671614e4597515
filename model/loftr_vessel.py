"""LoFTR for vessel matching: two images in, matches out, with a training path around kornia's modules. No losses.

The network is kornia's (Sun et al., "LoFTR: Detector-Free Local Feature Matching with Transformers", CVPR 2021); here are
what it lacks: features for training, modules that stay frozen whatever a script does, and the shared ridge stem.

Convention: the map of coarse features has a cell for every ``COARSE_STRIDE`` pixels, and cell (x, y) *sits on* pixel
``COARSE_STRIDE * (x, y) + cell_offset_px`` (the backbone's strided kernels are odd, so cells are centred on pixels and not
between them). Cells are numbered row by row. See ``geometry.cells``.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import NamedTuple

import torch
from kornia.feature import LoFTR
from kornia.feature.loftr.loftr import default_cfg
from kornia.feature.loftr.utils.position_encoding import PositionEncodingSine
from torch import nn
from torch.nn import functional as F

from geometry.cells import CellMatches, grid_size
from geometry.matrices import Size
from model.ridge_stem import RidgeStem
from utils.errors import InputError

COARSE_STRIDE, FINE_STRIDE = 8, 2
HALF_WINDOW_PX = float(default_cfg["fine_window_size"] // 2 * FINE_STRIDE)
# kornia's modules, by the names that also head the keys of published checkpoints.
MODULES = ("backbone", "pos_encoding", "loftr_coarse", "fine_preprocess", "loftr_fine")
RESIDUAL_START = 0.1


def cut_off_by(frozen: Sequence[str]) -> list[str]:
    """Modules that are not frozen but that no gradient reaches, because frozen modules run without a graph."""
    coarse, fine = "loftr_coarse" not in frozen, "loftr_fine" not in frozen
    through_fine = fine and "fine_preprocess" not in frozen
    reached = {
        "backbone": coarse or through_fine,
        "pos_encoding": coarse,
        "loftr_coarse": True,
        "fine_preprocess": fine,
        "loftr_fine": True,
    }
    return [name for name in MODULES if name not in frozen and not reached[name]]


class PairFeatures(NamedTuple):
    """What the network says about a batch of pairs, for training.

    Attributes:
        similarity: (B, L, S) logits of the dual softmax, fixed cells against moving cells.
        offset_px: (M, 2) where the fine stage finds the centre of each asked fixed cell, relative to the centre of the
            moving cell it was asked about; moving pixels, within the window.
        spread: (M,) standard deviation of the fine heatmap, in half windows.
    """

    similarity: torch.Tensor
    offset_px: torch.Tensor
    spread: torch.Tensor


class LoFTRFeatures(NamedTuple):
    """What the backbone says about one image alone: coarse tokens (1, L, C) with their positions, the fine map
    (1, C', H / 2, W / 2), and the rows and columns of coarse cells."""

    tokens: torch.Tensor
    fine: torch.Tensor
    grid: Size


class FoundMatches(NamedTuple):
    """Matches of one pair: cells (K,) of both images, moving offset (K, 2) in pixels, confidence (K,) in [0, 1]."""

    fixed_cell: torch.Tensor
    moving_cell: torch.Tensor
    offset_px: torch.Tensor
    confidence: torch.Tensor


class ScaledPositions(PositionEncodingSine):
    """kornia's positional encoding, made weaker or stronger by a factor."""

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
) -> dict:
    """kornia's configuration of a LoFTR of the given size, with the positional encoding as MINIMA's checkpoint has it."""
    config = copy.deepcopy(default_cfg)
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
    # No border is cut off and no threshold applied here: the matcher knows where the field of view is.
    config["match_coarse"] |= {"dsmax_temperature": temperature, "border_rm": 0, "thr": 0.0}
    return config


class LoFTRVessel(nn.Module):
    """LoFTR with one backbone for both images of a pair.

    Its keys are those of the published checkpoints (``matcher.backbone...``); the stem has none.

    Args:
        stem: "raw" (the published network sees intensity) or "ridge" (the shared ridge stem's maps).
        ridge_sigmas: scales of the ridge stem, pixels.
        initial_dim, block_dims: channels of the backbone at 1/2, and of its levels at 1/2, 1/4, 1/8; the last is the
            width of the coarse transformer, the first that of the fine one.
        heads: attention heads; must divide both widths.
        coarse_layers, fine_layers: pairs of one self- and one cross-attention layer.
        temperature: of the dual softmax.
        unit_features: compare coarse features by their cosine, once what all cells of an image share is taken off. The
            published network does not; from scratch it learns several times faster.
        position_scale: strength of the positional encoding, 1 as published. It is added to what is compared, so at full
            strength a network from scratch must first unlearn that like places match.
        position_cells: in training, the positions of a view are drawn from a grid of this many cells a side, as if it
            were a crop of a larger image (which it is); 0 counts from the view's own corner, as published.
        cell_offset_px: pixel on which coarse cell (0, 0) sits, along either axis. The published weights are 0.5 px off.

    Attributes:
        arguments: what the network was built from.
        frozen: names of the modules that do not train.
        size_multiple: height and width of the images must be multiples of this.

    Raises:
        InputError: sizes that do not fit together.
    """

    size_multiple = COARSE_STRIDE

    def __init__(
        self,
        stem: str = "raw",
        ridge_sigmas: Sequence[float] = (1.3, 2.2, 3.6),
        initial_dim: int = 128,
        block_dims: Sequence[int] = (128, 196, 256),
        heads: int = 8,
        coarse_layers: int = 4,
        fine_layers: int = 1,
        temperature: float = 0.1,
        unit_features: bool = False,
        position_scale: float = 1.0,
        position_cells: int = 0,
        cell_offset_px: float = -0.5,
    ) -> None:
        super().__init__()
        self.arguments = {
            "stem": stem,
            "ridge_sigmas": list(ridge_sigmas),
            "initial_dim": initial_dim,
            "block_dims": list(block_dims),
            "heads": heads,
            "coarse_layers": coarse_layers,
            "fine_layers": fine_layers,
            "temperature": temperature,
            "unit_features": unit_features,
            "position_scale": position_scale,
            "position_cells": position_cells,
            "cell_offset_px": cell_offset_px,
        }
        if stem not in ("raw", "ridge"):
            raise InputError(f"model.stem: '{stem}' is unknown; choose 'raw' or 'ridge'.")
        if len(block_dims) != 3 or any(
            width < 1 or width % heads for width in (block_dims[0], block_dims[2])
        ):
            raise InputError(
                f"model.block_dims {list(block_dims)}: three widths are needed, the first and the last of them "
                f"multiples of model.heads = {heads}."
            )
        if block_dims[2] % 4 or temperature <= 0 or min(coarse_layers, fine_layers) < 1:
            raise InputError(
                f"model: block_dims[2] = {block_dims[2]} must be a multiple of 4, temperature above 0, and at least "
                "one layer of each kind is needed."
            )
        self.matcher = LoFTR(
            None,
            kornia_config(initial_dim, block_dims, heads, coarse_layers, fine_layers, temperature),
        )
        self.matcher.pos_encoding = ScaledPositions(block_dims[2], position_scale)
        self.stem = RidgeStem(ridge_sigmas) if stem == "ridge" else nn.Identity()
        if stem == "ridge":
            self.matcher.backbone.conv1 = nn.Conv2d(
                self.stem.out_channels, initial_dim, 7, stride=2, padding=3, bias=False
            )
        self.temperature, self.unit_features = temperature, unit_features
        self.position_cells, self.cell_offset_px = position_cells, cell_offset_px
        self.frozen: tuple[str, ...] = ()
        self._start_near_identity()
        # What convolutions are fastest with, on a CPU and on tensor cores.
        self.to(memory_format=torch.channels_last)

    def _start_near_identity(self) -> None:
        """Let each attention layer add little at first, so that the backbone's features can be compared from step 1."""
        for transformer in (self.matcher.loftr_coarse, self.matcher.loftr_fine):
            for layer in transformer.layers:
                nn.init.constant_(layer.norm2.weight, RESIDUAL_START)

    # --- freezing ----------------------------------------------------------------------------------------------------

    def freeze(self, names: Sequence[str]) -> None:
        """Freeze these modules for good: no gradients, no graph, and evaluation mode whatever a script does.

        Args:
            names: among ``MODULES``; replaces what was frozen before.

        Raises:
            InputError: unknown name, or a module that is not frozen but that no gradient would reach.
        """
        unknown = sorted(set(names) - set(MODULES))
        if unknown:
            raise InputError(
                f"--freeze {' '.join(unknown)}: unknown; choose from {', '.join(MODULES)}, or none."
            )
        cut_off = [
            name
            for name in cut_off_by(names)
            if any(True for _ in getattr(self.matcher, name).parameters())
        ]
        if cut_off:
            raise InputError(
                f"--freeze {' '.join(names)}: {', '.join(cut_off)} would not learn either, because what is frozen "
                "lies between it and the loss; freeze it too, or less."
            )
        self.frozen = tuple(name for name in MODULES if name in names)
        for name in MODULES:
            getattr(self.matcher, name).requires_grad_(name not in self.frozen)
        self.train(self.training)

    def train(self, mode: bool = True) -> LoFTRVessel:
        """As usual, but frozen modules stay in evaluation mode: statistics of batch normalisation do not move."""
        super().train(mode)
        for name in self.frozen:
            getattr(self.matcher, name).eval()
        return self

    def _run(self, name: str, *arguments: object) -> object:
        """Run one of the modules; a frozen one without a graph, so that nothing is kept for it."""
        module, frozen = getattr(self.matcher, name), name in self.frozen
        if frozen:
            # Whatever a script switched to training mode, this one's statistics do not move.
            module.eval()
        with torch.set_grad_enabled(torch.is_grad_enabled() and not frozen):
            return module(*arguments)

    # --- features ----------------------------------------------------------------------------------------------------

    def _backbone(self, image: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """(B, 1, H, W) to coarse tokens (B, L, C), with their positions, and the fine map (B, C', H / 2, W / 2)."""
        if (
            image.ndim != 4
            or image.shape[1] != 1
            or any(side % self.size_multiple for side in image.shape[-2:])
        ):
            raise ValueError(
                f"image must be (B, 1, H, W) with H, W multiples of {self.size_multiple}, "
                f"not {tuple(image.shape)}"
            )
        with torch.no_grad():
            stem_maps = self.stem(image)
        coarse, fine = self._run("backbone", stem_maps)
        if self.training and self.position_cells:
            coarse = coarse + self._crop_of_positions(coarse)
        else:
            coarse = self._run("pos_encoding", coarse)
        # Token by token in memory, as the transformer reads them.
        return coarse.flatten(2).transpose(1, 2).contiguous(), fine

    def _crop_of_positions(self, coarse: torch.Tensor) -> torch.Tensor:
        """Positional encoding of each view (B, C, h, w) at a random place of the larger grid."""
        table, (height, width) = self.matcher.pos_encoding.pe, coarse.shape[-2:]
        crops = []
        for _ in range(len(coarse)):
            top = int(torch.randint(max(1, self.position_cells - height + 1), ()))
            left = int(torch.randint(max(1, self.position_cells - width + 1), ()))
            crops.append(table[0, :, top : top + height, left : left + width])
        return torch.stack(crops).to(coarse)

    def _pair_tokens(self, fixed: torch.Tensor, moving: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """Coarse tokens of both images after the transformer, and both fine maps."""
        if fixed.shape == moving.shape:
            tokens, fine = self._backbone(torch.cat([fixed, moving]))
            (fixed_tokens, moving_tokens), (fixed_fine, moving_fine) = (
                tokens.chunk(2),
                fine.chunk(2),
            )
        else:
            (fixed_tokens, fixed_fine), (moving_tokens, moving_fine) = (
                self._backbone(fixed),
                self._backbone(moving),
            )
        return *self._attend(fixed_tokens, moving_tokens), fixed_fine, moving_fine

    def _attend(
        self, fixed_tokens: torch.Tensor, moving_tokens: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """The coarse transformer, which sees both images: tokens as they are compared."""
        fixed_tokens, moving_tokens = self._run("loftr_coarse", fixed_tokens, moving_tokens)
        if self.unit_features:
            # kornia divides by sqrt(C): at this length its products are cosines.
            length = fixed_tokens.shape[-1] ** 0.5
            fixed_tokens, moving_tokens = (
                F.normalize(tokens - tokens.mean(1, keepdim=True), dim=-1) * length
                for tokens in (fixed_tokens, moving_tokens)
            )
        return fixed_tokens, moving_tokens

    def _refine(
        self,
        tokens: tuple[torch.Tensor, ...],
        batch: torch.Tensor,
        fixed_cell: torch.Tensor,
        moving_cell: torch.Tensor,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Fine stage at given cells (M,): offsets (M, 2) in moving pixels and spreads (M,)."""
        fixed_tokens, moving_tokens, fixed_fine, moving_fine = tokens
        nothing = fixed_tokens.new_zeros(len(batch), 2)
        data = {
            "stride_c": COARSE_STRIDE,
            "stride_f": FINE_STRIDE,
            "b_ids": batch,
            "i_ids": fixed_cell,
            "j_ids": moving_cell,
            "mkpts0_c": nothing,
            "mkpts1_c": nothing,
            "mconf": nothing[:, 0],
        }
        windows = self._run(
            "fine_preprocess", fixed_fine, moving_fine, fixed_tokens, moving_tokens, data
        )
        windows = self._run("loftr_fine", *windows)
        self.matcher.fine_matching(*windows, data)
        answer = data["expec_f"].float()
        return answer[:, :2] * HALF_WINDOW_PX, answer[:, 2]

    def forward(
        self, fixed: torch.Tensor, moving: torch.Tensor, asked: CellMatches
    ) -> PairFeatures:
        """Features of a batch of pairs, for training.

        Args:
            fixed, moving: (B, 1, H, W) in [0, 1].
            asked: cells at which the fine stage is to answer; at least one.
        """
        tokens = self._pair_tokens(fixed, moving)
        scale = tokens[0].shape[-1] * self.temperature
        similarity = torch.einsum("blc,bsc->bls", tokens[0], tokens[1]).float() / scale
        return PairFeatures(
            similarity, *self._refine(tokens, asked.batch, asked.fixed_cell, asked.moving_cell)
        )

    def _refuse_training_mode(self) -> None:
        if self.training:
            raise RuntimeError("matching needs evaluation mode; call eval() first")

    @torch.inference_mode()
    def describe(self, image: torch.Tensor) -> LoFTRFeatures:
        """What is computed of one image (1, 1, H, W) alone, so that it can be matched with many.

        Raises:
            RuntimeError: the network is in training mode.
        """
        self._refuse_training_mode()
        return LoFTRFeatures(
            *self._backbone(image), grid_size(tuple(image.shape[-2:]), COARSE_STRIDE)
        )

    @torch.inference_mode()
    def match(
        self,
        fixed: LoFTRFeatures,
        moving: LoFTRFeatures,
        fixed_allowed: torch.Tensor,
        moving_allowed: torch.Tensor,
        min_confidence: float,
    ) -> FoundMatches:
        """Match two images: mutual nearest cells by dual softmax, refined. No vessel mask is needed.

        Args:
            fixed, moving: from :meth:`describe`; the sizes may differ.
            fixed_allowed, moving_allowed: (1, h * w) bool, cells that may match at all (inside the field of view).
            min_confidence: least product of both softmax probabilities.

        Raises:
            RuntimeError: the network is in training mode.
        """
        self._refuse_training_mode()
        tokens = (*self._attend(fixed.tokens, moving.tokens), fixed.fine, moving.fine)
        data: dict = {"stride_c": COARSE_STRIDE, "hw0_c": fixed.grid, "hw1_c": moving.grid}
        self.matcher.coarse_matching(tokens[0], tokens[1], data, fixed_allowed, moving_allowed)
        keep = data["mconf"] >= min_confidence
        batch, fixed_cell, moving_cell, confidence = (
            data[name][keep] for name in ("b_ids", "i_ids", "j_ids", "mconf")
        )
        if len(batch) == 0:
            return FoundMatches(fixed_cell, moving_cell, tokens[0].new_zeros(0, 2), confidence)
        return FoundMatches(
            fixed_cell,
            moving_cell,
            self._refine(tokens, batch, fixed_cell, moving_cell)[0],
            confidence,
        )
