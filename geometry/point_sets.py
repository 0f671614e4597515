"""Points of all images of a batch in one tensor, padded to a common number.

Every operation is one call for the whole batch, and none reads a value on the host. A GPU therefore
never waits for one: where the number of points is unknown, the padding is computed too. On a CPU
reading a number costs nothing, so there the padding is cut, see :func:`reads_are_free`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch

from geometry.points import inside, sample_map, warp_points

# Where a value can be read without waiting for queued work. Without any, a CPU computes what a GPU
# computes.
FREE_READ_DEVICES = ("cpu",)


def reads_are_free(tensor: torch.Tensor) -> bool:
    """Whether a value can be read without waiting for queued work.

    Use it only to leave out work that does not change the result.

    Args:
        tensor: of any shape.
    """
    return tensor.device.type in FREE_READ_DEVICES


def may_hold(flags: torch.Tensor) -> bool:
    """Whether any flag can be true; true on a GPU, where an answer would have to be waited for.

    Args:
        flags: bool, of any shape.
    """
    return not reads_are_free(flags) or bool(flags.any())


def in_mask(points: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """Which points lie on a pixel of a mask.

    Args:
        points: (B, N, 2), pixels (x, y).
        mask: (B, 1, H, W), 0 or 1.

    Returns:
        (B, N) bool.
    """
    height, width = mask.shape[-2:]
    return inside(points, (height, width)) & (sample_map(mask, points)[..., 0] > 0.5)


class PointSet(NamedTuple):
    """Points of each image of a batch.

    Attributes:
        points: (B, N, 2) with N >= 1, pixels (x, y); finite at padding too.
        valid: (B, N) bool, false at padding. Padding may lie between the points.
    """

    points: torch.Tensor
    valid: torch.Tensor

    @classmethod
    def packed(cls, points: Sequence[torch.Tensor]) -> PointSet:
        """The points of each image, padded behind them.

        Args:
            points: per image (N, 2), pixels.
        """
        width = max(1, *map(len, points))
        padded = torch.stack(
            [torch.cat([each, each.new_zeros(width - len(each), 2)]) for each in points]
        )
        counts = torch.tensor([len(each) for each in points])[:, None]
        return cls(padded, (torch.arange(width) < counts).to(padded.device))

    def unpacked(self) -> list[torch.Tensor]:
        """Per image its points (N, 2), in order; waits for the device."""
        return [points[valid] for points, valid in zip(self.points, self.valid, strict=True)]

    def only(self, chosen: torch.Tensor) -> PointSet:
        """The points of a choice (B, N) bool."""
        return PointSet(self.points, self.valid & chosen)

    def on(self, mask: torch.Tensor) -> PointSet:
        """The points that lie on a pixel of a mask (B, 1, H, W)."""
        return self.only(in_mask(self.points, mask))

    def warped(self, H: torch.Tensor) -> PointSet:
        """The points mapped by a matrix of each image.

        Args:
            H: (B, 3, 3), from the pixels of the points to those of the result.
        """
        return PointSet(warp_points(self.points, H), self.valid)

    def numbers(self) -> torch.Tensor:
        """Number of points of each image: (B,) long."""
        return self.valid.sum(1)

    def first(self, count: int) -> PointSet:
        """The first points of each image, at most ``count``."""
        return self.only(self.valid.cumsum(1) <= count)

    def joined(self, *others: PointSet) -> PointSet:
        """These points followed by those of other sets, image by image."""
        sets = (self, *others)
        return PointSet(
            torch.cat([each.points.to(self.points) for each in sets], dim=1),
            torch.cat([each.valid for each in sets], dim=1),
        )

    def compacted(self, width: int) -> PointSet:
        """The first ``width`` points of each image without gaps; zeros behind them.

        Args:
            width: N of the result.
        """
        n_images = len(self.points)
        rank = self.valid.cumsum(1) - 1
        # Everything that is not kept goes to one more place, which is cut off.
        slot = torch.where(self.valid, rank, width).clamp(max=width)[..., None].expand(-1, -1, 2)
        points = self.points.new_zeros(n_images, width + 1, 2).scatter(1, slot, self.points)
        ranks = torch.arange(width, device=rank.device)
        return PointSet(points[:, :width], ranks < self.numbers()[:, None])

    def gaps(self, others: PointSet) -> torch.Tensor:
        """Distances to all points of other sets, image by image.

        Not by a matrix product: its rounding errors, above all in reduced precision, are large
        beside distances of a few pixels.

        Args:
            others: (B, M) points in the same pixels.

        Returns:
            (B, N, M), pixels; infinite to padding of the others.
        """
        gap = torch.cdist(self.points, others.points, compute_mode="donot_use_mm_for_euclid_dist")
        return gap.masked_fill(~others.valid[:, None], float("inf"))

    def near(self, others: PointSet, radius_px: torch.Tensor | float) -> torch.Tensor:
        """Which points have one of another set within a radius.

        Args:
            others: (B, M) points in the same pixels.
            radius_px: of all images, or (B,) of each, pixels.

        Returns:
            (B, N) bool, false at padding.
        """
        radius = radius_px[:, None] if isinstance(radius_px, torch.Tensor) else radius_px
        return self.valid & (self.gaps(others).amin(2) <= radius)

    def flat(self) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """The points of all images in one list; on a CPU without the padding.

        Returns:
            Points (K, 2), the number of the image of each, (K,) long, and whether it is a point,
            (K,) bool.
        """
        n_images, width = self.valid.shape
        images = torch.arange(n_images, device=self.valid.device).repeat_interleave(width)
        parts = self.points.flatten(0, 1), images, self.valid.flatten()
        if not reads_are_free(self.valid):
            return parts
        chosen = torch.nonzero(parts[2])[:, 0]
        return parts[0][chosen], parts[1][chosen], parts[2][chosen]
