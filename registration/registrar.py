"""Register pairs from Python: :class:`Registrar` and its :class:`Result`."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import numpy as np
from matplotlib.figure import Figure

from geometry.rasters import register_onto_fixed
from pictures.drawing import encoded_figure, plot_registration
from registration.pipeline import TRANSFORMS, Registration, register_pair
from registration.trained_matchers import load_matcher
from utils.device import pick_device
from utils.errors import InputError
from utils.files import write_bytes_atomically
from utils.image_files import MIN_SIDE_PX, check_content, read_color, read_gray, to_unit_range

PRETRAINED = Path(__file__).resolve().parents[1] / "save" / "pretrained"
DEFAULT_WEIGHTS = PRETRAINED / "superretina_multimodal.pth"


class Matches(NamedTuple):
    """Matched points (K, 2), (x, y) in original pixels of each image, row i corresponds; ``inliers`` (K,) bool agree with the
    matrix."""

    fixed_points: np.ndarray
    moving_points: np.ndarray
    inliers: np.ndarray


class Result:
    """What :meth:`Registrar.register` returns; everything in original pixels of both images.

    Attributes:
        registration: the pipeline's own record, with the working frames that debugging needs.
        fixed, moving: the images as they were given.
    """

    def __init__(
        self,
        registration: Registration,
        fixed: np.ndarray | str | Path,
        moving: np.ndarray | str | Path,
    ) -> None:
        self.registration = registration
        self.fixed, self.moving = fixed, moving

    def __repr__(self) -> str:
        reason = f": {self.reason}" if self.reason else ""
        return f"Result({self.status}{reason}, {self.n_inliers} of {self.n_matches} matches agree)"

    def __getattr__(self, name: str) -> object:
        # status, reason, n_matches, n_inliers, seconds, ...: the pipeline says them, and what it will say besides.
        if name.startswith("_") or name == "registration":
            raise AttributeError(name)
        return getattr(self.registration, name)

    @property
    def matrix(self) -> np.ndarray | None:
        """``H_fix_to_mov`` (3, 3): fixed pixels to moving pixels, (x, y), pixel centres at integers; None when failed. Of a
        curved transform its affine part: ``transform.map`` maps points by the whole of it."""
        return self.registration.H_fix_to_mov

    @property
    def matches(self) -> Matches:
        """All matches, and which of them agree with the matrix."""
        return Matches(
            self.registration.fixed_points,
            self.registration.moving_points,
            self.registration.inliers,
        )

    def warp(self, image: np.ndarray | str | Path | None = None) -> np.ndarray:
        """An image of the moving frame seen in the fixed frame; the moving image itself when None.

        Args:
            image: a path or an array (H, W[, 3]), of the size of the moving image (another frame of the same examination).

        Returns:
            (H, W) or (H, W, 3) float32 in [0, 1], the size of the fixed image; 0 where the moving frame shows nothing.

        Raises:
            InputError: the registration failed, or the image has another size than the moving one.
        """
        if self.matrix is None:
            raise InputError(f"nothing can be warped, for the registration failed: {self.reason}")
        moving_size = _as_picture(self.moving).shape[:2]
        picture = _as_picture(self.moving if image is None else image)
        if picture.shape[:2] != moving_size:
            raise InputError(
                f"an image of {picture.shape[1]} x {picture.shape[0]} px was given, but the matrix is for a moving "
                f"image of {moving_size[1]} x {moving_size[0]} px."
            )
        return register_onto_fixed(picture, self.transform, _as_picture(self.fixed).shape[:2])

    def plot(self, path: str | Path | None = None) -> Figure:
        """Fixed image, registered image, checkerboard and matches in one figure, also written to ``path`` when given."""
        registered = None if self.matrix is None else self.warp()
        figure = plot_registration(
            _as_picture(self.fixed),
            _as_picture(self.moving),
            registered,
            *self.matches,
            self.status + (f": {self.reason}" if self.reason else ""),
        )
        if path is not None:
            write_bytes_atomically(
                path, encoded_figure(figure, Path(path).suffix.lstrip(".") or "png")
            )
        return figure


class Registrar:
    """Registers pairs with one trained network.

    Args:
        weights: a checkpoint of a training run; the weights shipped with the project when None.
        transform: "affine", "similarity", "homography", or beyond a matrix "quadratic", "deformable", "auto": as far as the
            images bear it out (see ``registration.curved_refinement``).
        img_size: working size (long side, pixels); the checkpoint's when None.
        device: "auto", "cpu" or "cuda".

    Raises:
        InputError: unusable checkpoint or setting.
    """

    def __init__(
        self,
        weights: str | Path | None = None,
        transform: str = "affine",
        img_size: int | None = None,
        device: str = "auto",
    ) -> None:
        if transform not in TRANSFORMS:
            raise InputError(f"--transform {transform}: choose one of {', '.join(TRANSFORMS)}.")
        if img_size is not None and not 64 <= img_size <= 8192:
            raise InputError(f"--img_size {img_size}: must lie between 64 and 8192.")
        if weights is None and not DEFAULT_WEIGHTS.is_file():
            raise InputError(
                f"{DEFAULT_WEIGHTS}: no weights are shipped here; train with train_multimodal_e2e.py (or run "
                "`make demo`) and give --weights save/<mode>/<name>/best.pth."
            )
        self.weights = Path(weights or DEFAULT_WEIGHTS)
        self.transform = transform
        self.matcher, self.plausibility = load_matcher(self.weights, pick_device(device), img_size)

    def register(self, fixed: np.ndarray | str | Path, moving: np.ndarray | str | Path) -> Result:
        """Register one pair.

        Args:
            fixed, moving: paths, or arrays (H, W) or (H, W, 3) RGB, uint8, uint16 or float; sizes may differ.

        Returns:
            The result in original pixels of both images. A pair that cannot be registered has status "failed" and a reason.

        Raises:
            InputError: an image that cannot be used.
        """
        return Result(
            register_pair(
                self.matcher, _as_gray(fixed), _as_gray(moving), self.transform, self.plausibility
            ),
            fixed,
            moving,
        )


def _as_gray(image: np.ndarray | str | Path) -> np.ndarray:
    if isinstance(image, (str, Path)):
        return read_gray(image)
    if not isinstance(image, np.ndarray) or image.dtype.kind not in "buif":
        raise InputError(
            f"an image was given as {getattr(image, 'dtype', type(image).__name__)}; a path or an array of uint8, "
            "uint16 or float is needed."
        )
    if (
        not (image.ndim == 2 or (image.ndim == 3 and image.shape[2] >= 3))
        or min(image.shape[:2]) < MIN_SIDE_PX
    ):
        raise InputError(
            f"an image of shape {image.shape} was given; (H, W) or (H, W, 3) with at least {MIN_SIDE_PX} px a "
            "side needed."
        )
    gray = to_unit_range(image[..., 1] if image.ndim == 3 else image, "the given image")
    check_content(gray, "the given image")
    return gray


def _as_picture(image: np.ndarray | str | Path) -> np.ndarray:
    """(H, W[, 3]) float32 in [0, 1], in colour where there is colour."""
    if not isinstance(image, np.ndarray):
        return read_color(image)
    if not (image.ndim == 2 or (image.ndim == 3 and image.shape[2] >= 3)):
        raise InputError(f"an image of shape {image.shape} was given; (H, W) or (H, W, 3) needed.")
    return to_unit_range(image if image.ndim == 2 else image[..., :3], "the given image")
