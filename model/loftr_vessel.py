"""LoFTR for vessel matching: two images to matches, with a training path around kornia's modules.

The network is kornia's implementation of Sun et al., "LoFTR: Detector-Free Local Feature Matching
with Transformers", CVPR 2021. Added here: features for training, modules that stay frozen, and the
ridge stem.

Convention: the map of coarse features has one cell per ``COARSE_STRIDE`` pixels, and the centre of
cell (x, y) lies at pixel ``COARSE_STRIDE * (x, y) + cell_offset_px`` (strided kernels of odd size
centre cells on pixels). Cells are numbered row by row. See ``geometry.cells``.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from kornia.feature import LoFTR
from torch import nn
from torch.nn import functional as F

from geometry.cells import CellMatches, grid_size
from model.image_batch import check_image_batch
from model.loftr_modules import (
    COARSE_STRIDE,
    FINE_STRIDE,
    HALF_WINDOW_PX,
    MODULES,
    ScaledPositions,
    kornia_config,
)
from model.loftr_outputs import FoundMatches, LoFTRFeatures, PairFeatures, PairTokens
from model.ridge_stem import RidgeStem
from utils.errors import InputError

# Initial weight of the normalisation after each attention layer, whose output is added to its
# input; chosen by hand.
RESIDUAL_START = 0.1


@dataclass(frozen=True)
class LoFTRSettings:
    """Architecture of a :class:`LoFTRVessel`. The defaults are the published size.

    Attributes:
        stem: "raw" (intensity, as published) or "ridge" (the maps of the ridge stem).
        ridge_sigmas: scales of the ridge stem, pixels.
        initial_dim: channels of the backbone's first convolution, at 1/2 of the image size.
        block_dims: channels of the backbone's levels at 1/2, 1/4, 1/8; the last is the width of
            the coarse transformer, the first that of the fine one.
        heads: attention heads; must divide both widths.
        coarse_layers, fine_layers: pairs of one self- and one cross-attention layer.
        temperature: of the dual softmax.
        unit_features: compare coarse features by their cosine, after subtracting the mean over all
            cells of the image. Not in the published network; from scratch it converges several
            times faster.
        position_scale: factor of the positional encoding, 1 as published. The encoding is added to
            the features that are compared, so at full scale a network from scratch first favours
            matches between equal positions.
        position_cells: in training, the positions of a view are a random crop of a grid of this
            many cells a side, because a view is a crop of a larger image; 0 counts from the
            view's own corner, as published.
        cell_offset_px: pixel (along both axes) of the centre of coarse cell (0, 0); -0.5 for the
            published weights.

    Raises:
        InputError: unknown choice, or sizes that are inconsistent.
    """

    stem: str = "raw"
    ridge_sigmas: tuple[float, ...] = (1.3, 2.2, 3.6)
    initial_dim: int = 128
    block_dims: tuple[int, ...] = (128, 196, 256)
    heads: int = 8
    coarse_layers: int = 4
    fine_layers: int = 1
    temperature: float = 0.1
    unit_features: bool = False
    position_scale: float = 1.0
    position_cells: int = 0
    cell_offset_px: float = -0.5

    def __post_init__(self) -> None:
        if self.stem not in ("raw", "ridge"):
            raise InputError(f"model.stem: '{self.stem}' is unknown; choose 'raw' or 'ridge'.")
        if len(self.block_dims) != 3 or any(
            width < 1 or width % self.heads for width in (self.block_dims[0], self.block_dims[2])
        ):
            raise InputError(
                f"model.block_dims {list(self.block_dims)}: three widths are needed, the first "
                f"and the last of them multiples of model.heads = {self.heads}."
            )
        if (
            self.block_dims[2] % 4
            or self.temperature <= 0
            or min(self.coarse_layers, self.fine_layers) < 1
        ):
            raise InputError(
                f"model: block_dims[2] = {self.block_dims[2]} must be a multiple of 4, "
                "temperature above 0, and at least one layer of each kind is needed."
            )


class LoFTRVessel(nn.Module):
    """LoFTR with one backbone for both images of a pair.

    Its keys are those of the published checkpoints (``matcher.backbone...``); the stem has none.

    Args:
        settings: the architecture.

    Attributes:
        settings: as given.
        cell_offset_px: pixel (along both axes) of the centre of coarse cell (0, 0).
        frozen: names of the modules that do not train.
        size_multiple: height and width of the images must be multiples of this, pixels.
    """

    size_multiple = COARSE_STRIDE

    def __init__(self, settings: LoFTRSettings) -> None:
        super().__init__()
        self.settings = settings
        config = kornia_config(
            settings.initial_dim,
            settings.block_dims,
            settings.heads,
            settings.coarse_layers,
            settings.fine_layers,
            settings.temperature,
        )
        self.matcher = LoFTR(None, config)
        self.matcher.pos_encoding = ScaledPositions(settings.block_dims[2], settings.position_scale)
        self.stem: nn.Module = nn.Identity()
        if settings.stem == "ridge":
            self.stem = RidgeStem(settings.ridge_sigmas)
            self.matcher.backbone.conv1 = nn.Conv2d(
                len(settings.ridge_sigmas),
                settings.initial_dim,
                7,
                stride=2,
                padding=3,
                bias=False,
            )
        self.cell_offset_px = settings.cell_offset_px
        self.frozen: tuple[str, ...] = ()
        self._start_near_identity()
        # The fastest layout for convolutions on a CPU and on tensor cores.
        self.to(memory_format=torch.channels_last)

    def _start_near_identity(self) -> None:
        """Scale down the initial output of each attention layer.

        The coarse features are then close to the backbone's, which can be compared from the first
        training step.
        """
        for transformer in (self.matcher.loftr_coarse, self.matcher.loftr_fine):
            layers: Iterable[Any] = transformer.layers
            for layer in layers:
                nn.init.constant_(layer.norm2.weight, RESIDUAL_START)

    # --- freezing ---------------------------------------------------------------------------------

    def freeze(self, names: Sequence[str]) -> None:
        """Freeze these modules: their weights get no gradient, their statistics do not change.

        A frozen module still passes the gradient of its output on to modules before it that train:
        the fine loss reaches ``loftr_coarse`` through a frozen ``fine_preprocess``. Autograd builds
        no graph before the first module that trains.

        Args:
            names: among ``MODULES``; replaces what was frozen before.

        Raises:
            InputError: unknown name.
        """
        unknown = sorted(set(names) - set(MODULES))
        if unknown:
            raise InputError(
                f"--freeze {' '.join(unknown)}: unknown; choose from {', '.join(MODULES)}, or none."
            )
        self.frozen = tuple(name for name in MODULES if name in names)
        for name in MODULES:
            getattr(self.matcher, name).requires_grad_(name not in self.frozen)
        self.train(self.training)

    def train(self, mode: bool = True) -> LoFTRVessel:
        """Set the mode of all modules that are not frozen; frozen ones stay in evaluation mode.

        In evaluation mode the running statistics of batch normalisation do not change.
        """
        super().train(mode)
        for name in self.frozen:
            getattr(self.matcher, name).eval()
        return self

    def _run(self, name: str, *arguments: object) -> Any:
        """Run one of the modules, a frozen one in evaluation mode."""
        module = getattr(self.matcher, name)
        if name in self.frozen:
            # A caller may have set ``matcher`` itself to training mode.
            module.eval()
        return module(*arguments)

    # --- features ---------------------------------------------------------------------------------

    def _backbone(self, image: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Coarse tokens with positions and fine map of a batch of images.

        Args:
            image: (B, 1, H, W) in [0, 1].

        Returns:
            (B, L, C) tokens and (B, C', H / 2, W / 2).
        """
        check_image_batch(image, self.size_multiple)
        with torch.no_grad():
            stem_maps = self.stem(image)
        coarse, fine = self._run("backbone", stem_maps)
        if self.training and self.settings.position_cells:
            coarse = coarse + self._crop_of_positions(coarse)
        else:
            coarse = self._run("pos_encoding", coarse)
        # Contiguous per token, the order in which the transformer reads them.
        return coarse.flatten(2).transpose(1, 2).contiguous(), fine

    def _crop_of_positions(self, coarse: torch.Tensor) -> torch.Tensor:
        """Positional encoding of each view (B, C, h, w) at a random place of the larger grid."""
        table, (height, width) = self.matcher.pos_encoding.pe, coarse.shape[-2:]
        n_cells = self.settings.position_cells
        crops = []
        for _ in range(len(coarse)):
            top = int(torch.randint(max(1, n_cells - height + 1), ()))
            left = int(torch.randint(max(1, n_cells - width + 1), ()))
            crops.append(table[0, :, top : top + height, left : left + width])
        return torch.stack(crops).to(coarse)

    def _pair_tokens(self, fixed: torch.Tensor, moving: torch.Tensor) -> PairTokens:
        """Coarse tokens of both images after the transformer, and both fine maps."""
        if fixed.shape == moving.shape:
            tokens, fine = self._backbone(torch.cat([fixed, moving]))
            fixed_tokens, moving_tokens = tokens.chunk(2)
            fixed_fine, moving_fine = fine.chunk(2)
        else:
            fixed_tokens, fixed_fine = self._backbone(fixed)
            moving_tokens, moving_fine = self._backbone(moving)
        return PairTokens(*self._attend(fixed_tokens, moving_tokens), fixed_fine, moving_fine)

    def _attend(
        self, fixed_tokens: torch.Tensor, moving_tokens: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """The coarse transformer on the tokens (B, L, C) and (B, S, C) of both images."""
        fixed_tokens, moving_tokens = self._run("loftr_coarse", fixed_tokens, moving_tokens)
        if not self.settings.unit_features:
            return fixed_tokens, moving_tokens
        # kornia divides each feature by sqrt(C), so features of this length give cosines.
        length = fixed_tokens.shape[-1] ** 0.5
        fixed_tokens, moving_tokens = (
            F.normalize(tokens - tokens.mean(1, keepdim=True), dim=-1) * length
            for tokens in (fixed_tokens, moving_tokens)
        )
        return fixed_tokens, moving_tokens

    def _refine(
        self,
        tokens: PairTokens,
        batch: torch.Tensor,
        fixed_cell: torch.Tensor,
        moving_cell: torch.Tensor,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Fine stage at given cells (M,): offsets (M, 2) in moving pixels and spreads (M,)."""
        nothing = tokens.fixed.new_zeros(len(batch), 2)
        data: dict[str, Any] = {
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
            "fine_preprocess",
            tokens.fixed_fine,
            tokens.moving_fine,
            tokens.fixed,
            tokens.moving,
            data,
        )
        windows = self._run("loftr_fine", *windows)
        self.matcher.fine_matching(*windows, data)
        # kornia's result: (M, 3), offset (x, y) in half windows and its standard deviation.
        expected = data["expec_f"].float()
        return expected[:, :2] * HALF_WINDOW_PX, expected[:, 2]

    def forward(
        self, fixed: torch.Tensor, moving: torch.Tensor, selected: CellMatches
    ) -> PairFeatures:
        """Features of a batch of pairs, for training.

        Args:
            fixed, moving: (B, 1, H, W) in [0, 1].
            selected: matches at which the fine stage is evaluated; at least one.
        """
        tokens = self._pair_tokens(fixed, moving)
        scale = tokens.fixed.shape[-1] * self.settings.temperature
        similarity = torch.einsum("blc,bsc->bls", tokens.fixed, tokens.moving).float() / scale
        offset_px, spread = self._refine(
            tokens, selected.batch, selected.fixed_cell, selected.moving_cell
        )
        return PairFeatures(similarity, offset_px, spread)

    def _require_evaluation_mode(self) -> None:
        if self.training:
            raise RuntimeError("matching needs evaluation mode; call eval() first")

    @torch.inference_mode()
    def describe(self, image: torch.Tensor) -> LoFTRFeatures:
        """Features of one image (1, 1, H, W) in [0, 1], reusable for many matches.

        Raises:
            RuntimeError: the network is in training mode.
        """
        self._require_evaluation_mode()
        tokens, fine = self._backbone(image)
        height, width = image.shape[-2:]
        return LoFTRFeatures(tokens, fine, grid_size((height, width), COARSE_STRIDE))

    @torch.inference_mode()
    def match(
        self,
        fixed: LoFTRFeatures,
        moving: LoFTRFeatures,
        fixed_allowed: torch.Tensor,
        moving_allowed: torch.Tensor,
        min_confidence: float,
    ) -> FoundMatches:
        """Match two images: mutual nearest cells by dual softmax, then the fine stage.

        No vessel mask is needed.

        Args:
            fixed, moving: from :meth:`describe`; the sizes may differ.
            fixed_allowed, moving_allowed: (1, L) and (1, S) bool, cells that may match (inside the
                field of view).
            min_confidence: least product of both softmax probabilities.

        Raises:
            RuntimeError: the network is in training mode.
        """
        self._require_evaluation_mode()
        attended = self._attend(fixed.tokens, moving.tokens)
        tokens = PairTokens(*attended, fixed.fine, moving.fine)
        data: dict[str, Any] = {
            "stride_c": COARSE_STRIDE,
            "hw0_c": fixed.grid,
            "hw1_c": moving.grid,
        }
        self.matcher.coarse_matching(
            tokens.fixed, tokens.moving, data, fixed_allowed, moving_allowed
        )
        keep = data["mconf"] >= min_confidence
        batch, fixed_cell, moving_cell, confidence = (
            data[name][keep] for name in ("b_ids", "i_ids", "j_ids", "mconf")
        )
        if len(batch) == 0:
            offset_px = tokens.fixed.new_zeros(0, 2)
        else:
            offset_px, _ = self._refine(tokens, batch, fixed_cell, moving_cell)
        return FoundMatches(fixed_cell, moving_cell, offset_px, confidence)
