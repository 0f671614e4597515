"""SuperRetina for two modalities: image to detector map and descriptor map.

Two architectures share one interface (:class:`SuperRetinaMultimodal`):

- ``lite``: ridge stem, U-shaped network from 1/2 to 1/32 of the image size, detector at 1/2
  (upsampled to full size), descriptors at 1/4. Small enough to train on a CPU.
- ``published``: the network of Liu et al., "Semi-supervised Keypoint Detector and Descriptor for
  Retinal Image Matching", ECCV 2022 (section 3.1), layer for layer, so that the official weights
  can be loaded.

Convention: both maps are aligned with the image as ``geometry.points.sample_map`` reads them: a
descriptor map of stride s has exactly image size / s cells, and the centre of cell i lies at pixel
(i + 0.5) s - 0.5.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import nn
from torch.nn import functional as F

from model.image_batch import check_image_batch
from model.ridge_stem import RidgeStem
from utils.errors import InputError

ROLES = ("fixed", "moving")


@dataclass(frozen=True)
class ModelSettings:
    """Architecture of a :class:`SuperRetinaMultimodal`.

    Attributes:
        architecture: "lite" or "published".
        encoders: "shared" (one encoder for both images) or "dual" (one per role; the heads stay
            shared, so both images have the same descriptor space).
        stem: "ridge" or "raw" (lite only; the published network takes raw intensity).
        ridge_sigmas: scales of the ridge stem, pixels.
        widths: channels at 1/2, 1/4, ... of the image size (lite only).
        descriptor_dim: length of a descriptor (lite only; the published network has 256).

    Raises:
        InputError: unknown choice, or sizes outside of the limits.
    """

    architecture: str = "lite"
    encoders: str = "shared"
    stem: str = "ridge"
    ridge_sigmas: tuple[float, ...] = (1.3, 2.2, 3.6)
    widths: tuple[int, ...] = (16, 32, 64, 96, 96)
    descriptor_dim: int = 64

    def __post_init__(self) -> None:
        if self.encoders not in ("shared", "dual"):
            raise InputError(
                f"model.encoders: '{self.encoders}' is unknown; choose 'shared' or 'dual'."
            )
        if self.architecture == "lite":
            self._check_lite()
        elif self.architecture != "published":
            raise InputError(
                f"model.architecture: '{self.architecture}' is unknown; "
                "choose 'lite' or 'published'."
            )

    def _check_lite(self) -> None:
        channels = (*self.widths, self.descriptor_dim)
        # Group normalisation with channels // 8 groups must divide the channels evenly.
        if len(self.widths) < 3 or any(
            width < 1 or width % max(1, width // 8) for width in channels
        ):
            raise InputError(
                f"model.widths {list(self.widths)}, model.descriptor_dim {self.descriptor_dim}: "
                "at least three widths are needed, and multiples of 8."
            )
        # Upper limits: a checkpoint from an unknown source must not exhaust the memory.
        if len(self.widths) > 8 or max(channels) > 1024:
            raise InputError(
                "model.widths, model.descriptor_dim: at most eight widths, and none above 1024."
            )
        if len(self.ridge_sigmas) > 16 or not all(
            0.2 <= sigma <= 50 for sigma in self.ridge_sigmas
        ):
            raise InputError(
                f"model.ridge_sigmas {list(self.ridge_sigmas)[:16]}: at most 16, "
                "each from 0.2 to 50 pixels."
            )
        if self.stem not in ("ridge", "raw"):
            raise InputError(f"model.stem: '{self.stem}' is unknown; choose 'ridge' or 'raw'.")


class Features(NamedTuple):
    """Maps that a network computes from a batch of images.

    Attributes:
        detector: (B, 1, H, W) float32 in [0, 1], probability of a keypoint at every pixel.
        descriptors: (B, D, H / stride, W / stride) float32, unit length along D.
    """

    detector: torch.Tensor
    descriptors: torch.Tensor


def unit_length(descriptors: torch.Tensor) -> torch.Tensor:
    """Descriptors (B, D, H, W) scaled to length 1 along D.

    One reciprocal root per cell: forward and backward pass take half the time of a division per
    channel (measured on a CPU).
    """
    return descriptors * descriptors.float().square().sum(1, keepdim=True).clamp_min(1e-24).rsqrt()


def conv_block(channels_in: int, channels_out: int) -> nn.Sequential:
    """Two 3 x 3 convolutions with group normalisation.

    Group instead of batch normalisation: the statistics of an image do not depend on the rest of
    the batch, so training on several devices equals training on one, and a frozen network has no
    running statistics that could change.
    """
    layers: list[nn.Module] = []
    for index in range(2):
        layers += [
            nn.Conv2d(
                channels_in if index == 0 else channels_out, channels_out, 3, padding=1, bias=False
            ),
            nn.GroupNorm(max(1, channels_out // 8), channels_out),
            nn.ReLU(inplace=True),
        ]
    return nn.Sequential(*layers)


class LiteEncoder(nn.Module):
    """Stem and contracting path of the lite network.

    Args:
        stem: "ridge" or "raw".
        ridge_sigmas: scales of the ridge stem, pixels.
        widths: channels at 1/2, 1/4, 1/8, ... of the image size.
    """

    def __init__(self, stem: str, ridge_sigmas: Sequence[float], widths: Sequence[int]) -> None:
        super().__init__()
        self.stem = RidgeStem(ridge_sigmas) if stem == "ridge" else nn.Identity()
        stem_channels = len(ridge_sigmas) if stem == "ridge" else 1
        # An even kernel centres output i between pixels 2i and 2i + 1: the convention of strided
        # maps in the module's docstring.
        self.reduce = nn.Conv2d(stem_channels, widths[0], 4, stride=2, padding=1)
        self.blocks = nn.ModuleList(
            conv_block(widths[max(level - 1, 0)], widths[level]) for level in range(len(widths))
        )

    def forward(self, image: torch.Tensor) -> list[torch.Tensor]:
        """(B, 1, H, W) in [0, 1] to a list of (B, widths[l], H / 2**(l+1), W / 2**(l+1))."""
        x = self.reduce(self.stem(image))
        maps = []
        for level, block in enumerate(self.blocks):
            x = block(x if level == 0 else F.max_pool2d(x, 2))
            maps.append(x)
        return maps


class LiteDecoder(nn.Module):
    """Expanding path of the lite network, descriptor head at 1/4 and detector head at 1/2.

    Args:
        widths: channels of the encoder's maps, at least three.
        descriptor_dim: length of a descriptor.
    """

    def __init__(self, widths: Sequence[int], descriptor_dim: int) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(
            conv_block(widths[level] + widths[level + 1], widths[level])
            for level in range(len(widths) - 1)
        )
        self.descriptor_head = nn.Sequential(
            conv_block(widths[1], descriptor_dim), nn.Conv2d(descriptor_dim, descriptor_dim, 1)
        )
        self.detector_head = nn.Conv2d(widths[0], 1, 3, padding=1)
        assert self.detector_head.bias is not None
        # Keypoints are rare: an initial probability of sigmoid(-3) = 0.05 instead of 0.5 saves the
        # first steps of the Dice loss.
        nn.init.constant_(self.detector_head.bias, -3.0)

    def forward(self, maps: list[torch.Tensor]) -> Features:
        """Maps of :class:`LiteEncoder`, (B, C, H / 2, W / 2) and coarser, to :class:`Features`."""
        x = maps[-1]
        descriptors: torch.Tensor | None = None
        for level in reversed(range(len(self.blocks))):
            x = F.interpolate(x, scale_factor=2, mode="bilinear", align_corners=False)
            x = self.blocks[level](torch.cat([x, maps[level]], dim=1))
            if level == 1:
                descriptors = self.descriptor_head(x)
        assert descriptors is not None, "at least three widths give a level 1"
        logits = F.interpolate(
            self.detector_head(x), scale_factor=2, mode="bilinear", align_corners=False
        )
        return Features(torch.sigmoid(logits.float()), unit_length(descriptors.float()))


class PublishedEncoder(nn.Module):
    """Convolutions 1a to 4b of the published network: maps at 1, 1/2, 1/4 and 1/8."""

    def __init__(self) -> None:
        super().__init__()
        widths = (1, 64, 64, 128, 128)
        for level in range(1, 5):
            setattr(
                self, f"conv{level}a", nn.Conv2d(widths[level - 1], widths[level], 3, padding=1)
            )
            setattr(self, f"conv{level}b", nn.Conv2d(widths[level], widths[level], 3, padding=1))

    def forward(self, image: torch.Tensor) -> list[torch.Tensor]:
        """(B, 1, H, W) in [0, 1] to (B, C[l], H / 2**l, W / 2**l), C = 64, 64, 128, 128."""
        x, maps = image, []
        for level in range(1, 5):
            x = x if level == 1 else F.max_pool2d(x, 2)
            x = F.relu(getattr(self, f"conv{level}a")(x))
            x = F.relu(getattr(self, f"conv{level}b")(x))
            maps.append(x)
        return maps


class PublishedDecoder(nn.Module):
    """Detector and descriptor heads of the published network."""

    def __init__(self) -> None:
        super().__init__()
        self.convDa = nn.Conv2d(128, 256, 3, padding=1)
        self.convDb = nn.Conv2d(256, 256, 4, stride=2)
        self.convDc = nn.Conv2d(256, 256, 1)
        self.trans_conv = nn.ConvTranspose2d(256, 256, 2, stride=2)
        for level, (channels_in, channels_out) in {
            3: (256, 128),
            2: (192, 64),
            1: (128, 64),
        }.items():
            block = nn.Sequential(
                nn.Conv2d(channels_in, channels_out, 3, padding=1),
                nn.ReLU(inplace=True),
                nn.Conv2d(channels_out, channels_out, 3, padding=1),
                nn.ReLU(inplace=True),
            )
            setattr(self, f"dconv_up{level}", block)
        self.conv_last = nn.Conv2d(64, 1, 1)

    def _descriptors(self, deepest: torch.Tensor) -> torch.Tensor:
        """(B, 128, H / 8, W / 8) to unit descriptors (B, 256, H / 8, W / 8)."""
        x = F.relu(self.convDb(F.relu(self.convDa(deepest))))
        x = self.trans_conv(unit_length(self.convDc(x)))
        # The unpadded 4 x 4 convolution loses one cell on each side: cell k of this map is cell
        # k + 1 of the image's grid. Pad by one cell, or descriptors are sampled 8 pixels off.
        return unit_length(F.pad(x.float(), (1, 1, 1, 1), mode="replicate"))

    def forward(self, maps: list[torch.Tensor]) -> Features:
        """Maps (B, C, H / 2**l, W / 2**l) of :class:`PublishedEncoder` to features.

        Convention: upsampling with align_corners=True, unlike the rest of the project, because
        the official weights were trained with it.
        """
        x = maps[3]
        for level in (3, 2, 1):
            x = F.interpolate(x, scale_factor=2, mode="bilinear", align_corners=True)
            x = getattr(self, f"dconv_up{level}")(torch.cat([x, maps[level - 1]], dim=1))
        return Features(torch.sigmoid(self.conv_last(x).float()), self._descriptors(maps[3]))


class SuperRetinaMultimodal(nn.Module):
    """Detector and descriptor network for the two images of a pair.

    Args:
        settings: the architecture.

    Attributes:
        settings: as given.
        descriptor_stride: image pixels per cell of the descriptor map.
        size_multiple: height and width of the images must be multiples of this, pixels.
    """

    def __init__(self, settings: ModelSettings) -> None:
        super().__init__()
        self.settings = settings
        self.decoder: nn.Module
        if settings.architecture == "lite":
            self.decoder = LiteDecoder(settings.widths, settings.descriptor_dim)
            self.descriptor_stride, self.size_multiple = 4, 2 ** len(settings.widths)
        else:
            self.decoder = PublishedDecoder()
            self.descriptor_stride, self.size_multiple = 8, 16
        self.encoder = self._make_encoder()
        self.moving_encoder = self._make_encoder() if settings.encoders == "dual" else None
        # Saves a third of the time of a training step on a CPU; tensor cores need this layout too.
        self.to(memory_format=torch.channels_last)

    def _make_encoder(self) -> nn.Module:
        settings = self.settings
        if settings.architecture == "published":
            return PublishedEncoder()
        return LiteEncoder(settings.stem, settings.ridge_sigmas, settings.widths)

    def describe(self, image: torch.Tensor, role: str) -> Features:
        """Features of images in one role.

        Args:
            image: (B, 1, H, W) in [0, 1]; H and W multiples of ``size_multiple``.
            role: "fixed" or "moving"; selects the encoder of a network with dual encoders.

        Raises:
            ValueError: wrong shape or role.
        """
        if role not in ROLES:
            raise ValueError(f"role must be one of {ROLES}, not {role!r}")
        check_image_batch(image, self.size_multiple)
        encoder = (
            self.moving_encoder
            if role == "moving" and self.moving_encoder is not None
            else self.encoder
        )
        return self.decoder(encoder(image))

    def forward(self, fixed: torch.Tensor, moving: torch.Tensor) -> tuple[Features, Features]:
        """Features of both images of a batch of pairs, (B, 1, H, W) each; see :meth:`describe`."""
        if self.moving_encoder is None and fixed.shape == moving.shape:
            both = self.describe(torch.cat([fixed, moving]), "fixed")
            halves = [both_map.chunk(2) for both_map in both]
            return Features(*(half[0] for half in halves)), Features(*(half[1] for half in halves))
        return self.describe(fixed, "fixed"), self.describe(moving, "moving")
