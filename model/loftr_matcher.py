"""From two images of any sizes to matches, by a trained :class:`model.loftr_vessel.LoFTRVessel`."""
from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import torch

from model.loftr_vessel import COARSE_STRIDE, LoFTRVessel, cell_grid
from model.registration import MIN_PROPOSAL_INLIERS, MatchSettings, PairMatches, WorkingFrame, to_working_frame
from utils.cells import cell_centres
from utils.field_of_view import erode_field
from utils.geometry import Plausibility, estimate_transform, warp_points
from utils.pictures import register_onto_fixed


@dataclass(frozen=True)
class LoFTRMatchSettings(MatchSettings):
    """How LoFTR matches; the settings of keypoints that it inherits have no meaning here, those of the working frame
    and of the fit do.

    Attributes:
        min_confidence: least dual-softmax probability of a match.
        max_matches: at most so many, the most confident.
        aligned_round: match once more with the moving image warped by the first fit. Turn, scale and most of the shift
            are gone then, so many more cells match and the fine stage sees what it is best at.
    """

    min_confidence: float = 0.2
    max_matches: int = 2000
    aligned_round: bool = True


@dataclass(frozen=True)
class WorkingImage:
    """A padded working image for the network, the cells that may match, and how it lies in the original image.

    Attributes:
        tensor: (1, 1, H, W), sides multiples of the coarse stride.
        gray: (h, w) the same without padding; allowed: (h, w) bool, the field of view without its edge.
        frame: its place in the original image.
    """

    tensor: torch.Tensor
    gray: np.ndarray
    allowed: np.ndarray
    frame: WorkingFrame


class LoFTRMatcher:
    """Matches with a trained network. It stands beside ``SuperRetinaMatcher`` and serves the same callers.

    Args:
        model: the network; put into evaluation mode while it matches, and back afterwards.
        settings: see :class:`LoFTRMatchSettings`.
        device: where the network is.
    """

    name = "loftr"

    def __init__(self, model: LoFTRVessel, settings: LoFTRMatchSettings, device: torch.device | str = "cpu") -> None:
        self.model, self.settings, self.device = model, settings, torch.device(device)

    def match(self, fixed: np.ndarray, moving: np.ndarray) -> PairMatches:
        """Match two grey images (H, W) float in [0, 1] of any sizes."""
        was_training = self.model.training
        self.model.eval()
        try:
            return self._match(self._working(fixed), self._working(moving))
        finally:
            self.model.train(was_training)

    def _match(self, fixed: WorkingImage, moving: WorkingImage) -> PairMatches:
        points = self._match_once(fixed, moving)
        if self.settings.aligned_round:
            H = self._propose(points, fixed)
            if H is not None:
                again = self._match_once(fixed, self._warped(moving, H, fixed))
                points = (again[0], warp_points(again[1], H), again[2])
        fixed_points, moving_points, confidence = points
        return PairMatches(fixed_points, moving_points, confidence, fixed.frame, moving.frame, fixed_points, moving_points)

    def _propose(self, points: tuple[np.ndarray, ...], fixed: WorkingImage) -> np.ndarray | None:
        """A first transform in working pixels, from a handful of agreeing matches; None when there is none."""
        lenient = replace(Plausibility(), min_inliers=MIN_PROPOSAL_INLIERS, min_inlier_share=0.0)
        # Coarse matches may be a cell off, so the first fit allows as much.
        return estimate_transform(points[0], points[1], fixed.frame.size, "affine", 0.75 * COARSE_STRIDE, lenient).H_fix_to_mov

    def _working(self, image: np.ndarray) -> WorkingImage:
        gray, seen, frame = to_working_frame(image, self.settings.long_side)
        return self._prepared(gray, erode_field(seen, self.settings.field_margin_px), frame)

    def _warped(self, moving: WorkingImage, H_fix_to_mov: np.ndarray, fixed: WorkingImage) -> WorkingImage:
        """The moving working image laid onto the fixed one."""
        size = fixed.frame.size
        gray = register_onto_fixed(moving.gray, H_fix_to_mov, size)
        allowed = register_onto_fixed(moving.allowed.astype(np.float32), H_fix_to_mov, size) > 0.5
        return self._prepared(gray, allowed, fixed.frame)

    def _prepared(self, gray: np.ndarray, allowed: np.ndarray, frame: WorkingFrame) -> WorkingImage:
        height, width = gray.shape
        padded = np.pad(gray, ((0, -height % COARSE_STRIDE), (0, -width % COARSE_STRIDE)))
        tensor = torch.from_numpy(np.ascontiguousarray(padded, dtype=np.float32))[None, None].to(self.device)
        return WorkingImage(tensor, gray, allowed, frame)

    def _match_once(self, fixed: WorkingImage, moving: WorkingImage) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Matched points (K, 2) of both working images and their confidence (K,), the most confident first."""
        found = self.model.match(fixed.tensor, moving.tensor, self._allowed_cells(fixed), self._allowed_cells(moving),
                                 self.settings.min_confidence)
        order = torch.argsort(found.confidence, descending=True, stable=True)[:self.settings.max_matches]
        fixed_points = self._centres(fixed)[found.fixed_cell[order]]
        moving_points = self._centres(moving)[found.moving_cell[order]] + found.offset_px[order]
        return tuple(values.cpu().numpy().astype(np.float64)
                     for values in (fixed_points, moving_points, found.confidence[order]))

    def _centres(self, image: WorkingImage) -> torch.Tensor:
        return cell_centres(tuple(image.tensor.shape[-2:]), COARSE_STRIDE, self.model.cell_offset_px, self.device)

    def _allowed_cells(self, image: WorkingImage) -> torch.Tensor:
        """Cells that sit on a pixel where matches may lie: (1, number of cells) bool."""
        rows, columns = cell_grid(image.tensor)
        allowed = np.zeros((rows * COARSE_STRIDE, columns * COARSE_STRIDE), dtype=bool)
        allowed[:image.gray.shape[0], :image.gray.shape[1]] = image.allowed
        x, y = np.clip(np.round(self._centres(image).cpu().numpy()).astype(int), 0, None).T
        return torch.from_numpy(allowed[y, x])[None].to(self.device)
