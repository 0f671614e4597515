"""SuperRetina for two modalities: image in, detector map and descriptor map out. Networks only; no losses.

Two architectures share one interface (:class:`SuperRetinaMultimodal`):

- ``lite``: ridge stem, U-shaped network from 1/2 to 1/32, detector at 1/2 brought to full size, descriptors at 1/4.
  Made to be trained on a CPU.
- ``published``: the network of Liu et al., "Semi-supervised Keypoint Detector and Descriptor for Retinal Image
  Matching", ECCV 2022 (section 3.1), layer for layer, so that the official weights can be loaded.

Convention: both maps are aligned with the image as ``geometry.points.sample_map`` reads them: a descriptor map of stride
s has exactly image size / s cells and the centre of cell i lies at pixel (i + 0.5) s - 0.5.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import nn
from torch.nn import functional as F

from model.ridge_stem import RidgeStem
from utils.errors import InputError

ROLES = ("fixed", "moving")


def unit_length(descriptors: torch.Tensor) -> torch.Tensor:
    """Descriptors (B, D, H, W) scaled to length 1. One reciprocal root per place: twice as fast in both directions as a
    division per channel."""
    return descriptors * descriptors.float().square().sum(1, keepdim=True).clamp_min(1e-24).rsqrt()


class Features(NamedTuple):
    """What a network says about a batch of images.

    Attributes:
        detector: (B, 1, H, W) probability of a keypoint at every pixel.
        descriptors: (B, D, H / stride, W / stride), unit length along D.
    """

    detector: torch.Tensor
    descriptors: torch.Tensor


def conv_block(channels_in: int, channels_out: int) -> nn.Sequential:
    """Two 3 x 3 convolutions with group normalisation.

    Groups, not batches: the statistics of an image never depend on what else is in the batch, so training on several
    devices equals training on one, and a frozen network cannot drift.
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
    """Stem and contracting path. Returns maps at 1/2, 1/4, 1/8, ... of the image, one per entry of ``widths``."""

    def __init__(self, stem: str, ridge_sigmas: Sequence[float], widths: Sequence[int]) -> None:
        super().__init__()
        if stem not in ("ridge", "raw"):
            raise InputError(f"model.stem: '{stem}' is unknown; choose 'ridge' or 'raw'.")
        self.stem = RidgeStem(ridge_sigmas) if stem == "ridge" else nn.Identity()
        stem_channels = len(ridge_sigmas) if stem == "ridge" else 1
        # An even kernel centres output i between pixels 2i and 2i + 1, as the convention of strided maps wants it.
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
    """Expanding path with a descriptor head at 1/4 and a detector head at 1/2."""

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
        # Keypoints are rare: start by answering "none" with confidence, or Dice spends its first steps unlearning 0.5.
        nn.init.constant_(self.detector_head.bias, -3.0)

    def forward(self, maps: list[torch.Tensor]) -> Features:
        """Maps of :class:`LiteEncoder` to :class:`Features`."""
        x, descriptors = maps[-1], None
        for level in reversed(range(len(self.blocks))):
            x = F.interpolate(x, scale_factor=2, mode="bilinear", align_corners=False)
            x = self.blocks[level](torch.cat([x, maps[level]], dim=1))
            if level == 1:
                descriptors = self.descriptor_head(x)
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
        """(B, 1, H, W) to four maps."""
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
        x = F.relu(self.convDb(F.relu(self.convDa(deepest))))
        x = self.trans_conv(unit_length(self.convDc(x)))
        # The unpadded 4 x 4 convolution loses one cell on each side: cell k of this map is cell k + 1 of the image's
        # grid. Put the border back, or every descriptor is read 8 pixels off.
        return unit_length(F.pad(x.float(), (1, 1, 1, 1), mode="replicate"))

    def forward(self, maps: list[torch.Tensor]) -> Features:
        """Maps of :class:`PublishedEncoder` to :class:`Features`."""
        x = maps[3]
        for level in (3, 2, 1):
            # Corners aligned here, against our own convention: the official weights were trained so.
            x = F.interpolate(x, scale_factor=2, mode="bilinear", align_corners=True)
            x = getattr(self, f"dconv_up{level}")(torch.cat([x, maps[level - 1]], dim=1))
        return Features(torch.sigmoid(self.conv_last(x).float()), self._descriptors(maps[3]))


class SuperRetinaMultimodal(nn.Module):
    """Detector and descriptor network for the two images of a pair.

    Args:
        architecture: "lite" or "published".
        encoders: "shared" (one encoder sees both images) or "dual" (one for each role; the heads stay shared, so the
            descriptors live in one space).
        stem: "ridge" or "raw" (lite only; the published network sees raw intensity).
        ridge_sigmas: scales of the ridge stem, pixels.
        widths: channels at 1/2, 1/4, ... (lite only; at least three, multiples of 8).
        descriptor_dim: length of a descriptor (lite only; the published network has 256).

    Attributes:
        arguments: what the network was built from.
        descriptor_stride: image pixels per cell of the descriptor map.
        size_multiple: height and width of the images must be multiples of this.
    """

    def __init__(
        self,
        architecture: str = "lite",
        encoders: str = "shared",
        stem: str = "ridge",
        ridge_sigmas: Sequence[float] = (1.3, 2.2, 3.6),
        widths: Sequence[int] = (16, 32, 64, 96, 96),
        descriptor_dim: int = 64,
    ) -> None:
        super().__init__()
        self.arguments = {
            "architecture": architecture,
            "encoders": encoders,
            "stem": stem,
            "ridge_sigmas": list(ridge_sigmas),
            "widths": list(widths),
            "descriptor_dim": descriptor_dim,
        }
        if encoders not in ("shared", "dual"):
            raise InputError(f"model.encoders: '{encoders}' is unknown; choose 'shared' or 'dual'.")
        if architecture == "lite":
            if len(widths) < 3 or any(
                width < 1 or width % max(1, width // 8) for width in (*widths, descriptor_dim)
            ):
                raise InputError(
                    f"model.widths {list(widths)}, model.descriptor_dim {descriptor_dim}: at least three widths "
                    "are needed, and multiples of 8."
                )
            # A checkpoint from elsewhere must not make this one allocate the whole memory.
            if len(widths) > 8 or max(*widths, descriptor_dim) > 1024:
                raise InputError(
                    "model.widths, model.descriptor_dim: at most eight widths, and none above 1024."
                )
            if len(ridge_sigmas) > 16 or not all(0.2 <= sigma <= 50 for sigma in ridge_sigmas):
                raise InputError(
                    f"model.ridge_sigmas {list(ridge_sigmas)[:16]}: at most 16, each from 0.2 to 50 pixels."
                )

            def make_encoder() -> nn.Module:
                return LiteEncoder(stem, ridge_sigmas, widths)

            self.decoder: nn.Module = LiteDecoder(widths, descriptor_dim)
            self.descriptor_stride, self.size_multiple = 4, 2 ** len(widths)
        elif architecture == "published":
            make_encoder = PublishedEncoder
            self.decoder = PublishedDecoder()
            self.descriptor_stride, self.size_multiple = 8, 16
        else:
            raise InputError(
                f"model.architecture: '{architecture}' is unknown; choose 'lite' or 'published'."
            )
        self.encoder = make_encoder()
        self.moving_encoder = make_encoder() if encoders == "dual" else None
        # A third less time per step on a CPU, and what tensor cores want.
        self.to(memory_format=torch.channels_last)

    def describe(self, image: torch.Tensor, role: str) -> Features:
        """Features of images in one role.

        Args:
            image: (B, 1, H, W) in [0, 1]; H and W multiples of ``size_multiple``.
            role: "fixed" or "moving"; only dual encoders tell them apart.

        Raises:
            ValueError: wrong shape or role.
        """
        if role not in ROLES:
            raise ValueError(f"role must be one of {ROLES}, not {role!r}")
        if (
            image.ndim != 4
            or image.shape[1] != 1
            or any(side % self.size_multiple for side in image.shape[-2:])
        ):
            raise ValueError(
                f"image must be (B, 1, H, W) with H, W multiples of {self.size_multiple}, "
                f"not {tuple(image.shape)}"
            )
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
