"""Register pairs from Python: :class:`Registrar` and its :class:`Result`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from matplotlib.figure import Figure

from geometry.rasters import register_onto_fixed
from geometry.transform_files import EXPORTS
from geometry.transforms import Transform
from pictures.drawing import encoded_figure, plot_registration
from registration.pair_outputs import GIVEN, PAIR_FILES, RegisteredImages, write_pair
from registration.pipeline import register_pair
from registration.registered_pair import Registration
from registration.trained_matchers import load_matcher
from registration.transform_choice import TRANSFORMS
from utils.device import pick_device
from utils.errors import InputError
from utils.files import check_writable, write_bytes_atomically
from utils.image_decoding import read_stored
from utils.image_files import gray_of, read_color, to_unit_range
from utils.stored_image import MIN_SIDE_PX, StoredImage, as_storable

PRETRAINED = Path(__file__).resolve().parents[1] / "save" / "pretrained"
DEFAULT_WEIGHTS = PRETRAINED / "superretina_multimodal.pth"
MIN_WORKING_PX = 64  # least working size, pixels
MAX_WORKING_PX = 8192  # largest working size, pixels

Image = np.ndarray | str | Path


class Matches(NamedTuple):
    """Matches of a pair in original pixels.

    Attributes:
        fixed_points, moving_points: (K, 2) float64, pixels (x, y); row i corresponds.
        inliers: (K,) bool, which of them agree with the matrix.
    """

    fixed_points: np.ndarray
    moving_points: np.ndarray
    inliers: np.ndarray


class Result:
    """Result of :meth:`Registrar.register`, in original pixels (x, y) of both images.

    Attributes:
        registration: result of the pipeline, with the working frames for debugging.
        fixed, moving: the images as they were given: paths or arrays (H, W) or (H, W, 3).
        asked_for: the transform that was asked for.
        weights: checkpoint that registered the pair.
    """

    def __init__(
        self, registration: Registration, fixed: Image, moving: Image, asked_for: str, weights: Path
    ) -> None:
        self.registration = registration
        self.fixed, self.moving = fixed, moving
        self.asked_for, self.weights = asked_for, weights

    def __repr__(self) -> str:
        reason = f": {self.reason}" if self.reason else ""
        return f"Result({self.status}{reason}, {self.n_inliers} of {self.n_matches} matches agree)"

    @property
    def status(self) -> str:
        """ "ok" or "failed"."""
        return self.registration.status

    @property
    def reason(self) -> str:
        """Why the registration failed; "" otherwise."""
        return self.registration.reason

    @property
    def confidence(self) -> float:
        """Probability that the matrix is right, [0, 1]; 0 when failed."""
        return self.registration.confidence

    @property
    def transform(self) -> Transform | None:
        """Transform from fixed to moving pixels; None when failed."""
        return self.registration.transform

    @property
    def transform_reason(self) -> str:
        """Why this kind of transform was chosen; "" where a matrix was requested."""
        return self.registration.transform_reason

    @property
    def agreement(self) -> float:
        """Agreement of the vessels under the matrix, standard deviations; 0 without a matrix."""
        return self.registration.agreement

    @property
    def significance(self) -> float:
        """Deviation of the number of inliers from chance, standard deviations."""
        return self.registration.significance

    @property
    def n_matches(self) -> int:
        """Number of matches before the robust fit."""
        return self.registration.n_matches

    @property
    def n_inliers(self) -> int:
        """Number of inliers among the matches."""
        return self.registration.n_inliers

    @property
    def seconds(self) -> float:
        """Wall-clock time of the registration, without reading files."""
        return self.registration.seconds

    @property
    def H_affine(self) -> np.ndarray | None:
        """Affine matrix (3, 3), fixed to moving pixels, whatever the transform; None when failed.

        For a homography the affine matrix that is nearest to it at the inliers.
        """
        return self.registration.H_affine

    @property
    def H_fix_to_mov(self) -> np.ndarray | None:
        """Matrix (3, 3); None when failed.

        Convention: fixed pixels to moving pixels, (x, y), pixel centres at integers. For a curved
        transform its affine part; ``transform.map`` maps points by the transform itself.
        """
        return self.registration.H_fix_to_mov

    @property
    def matrix(self) -> np.ndarray | None:
        """The same (3, 3) matrix as :attr:`H_fix_to_mov`."""
        return self.registration.H_fix_to_mov

    @property
    def matches(self) -> Matches:
        """All matches, and which of them are inliers."""
        return Matches(self.fixed_points, self.moving_points, self.inliers)

    @property
    def fixed_points(self) -> np.ndarray:
        """(K, 2) float64, pixels (x, y) of all matches in the fixed image."""
        return self.registration.fixed_points

    @property
    def moving_points(self) -> np.ndarray:
        """(K, 2) float64, pixels (x, y) of all matches in the moving image."""
        return self.registration.moving_points

    @property
    def inliers(self) -> np.ndarray:
        """(K,) bool, which matches are inliers of the matrix before its refinement."""
        return self.registration.inliers

    def warp(self, image: Image | None = None) -> np.ndarray:
        """Resample an image of the moving frame into the fixed frame.

        Args:
            image: a path or an array (H, W) or (H, W, 3) of the size of the moving image, such as
                another frame of the same examination; the moving image itself when None.

        Returns:
            (H, W) or (H, W, 3) float32 in [0, 1], of the size of the fixed image; 0 outside the
            moving image.

        Raises:
            InputError: the registration failed, or the size is not that of the moving image.
        """
        if self.transform is None:
            raise InputError(f"nothing can be warped, for the registration failed: {self.reason}")
        moving_size = _as_picture(self.moving).shape[:2]
        picture = _as_picture(self.moving if image is None else image)
        if picture.shape[:2] != moving_size:
            raise InputError(
                f"an image of {picture.shape[1]} x {picture.shape[0]} px was given, but the matrix "
                f"is for a moving image of {moving_size[1]} x {moving_size[0]} px."
            )
        height, width = _as_picture(self.fixed).shape[:2]
        return register_onto_fixed(picture, self.transform, (height, width))

    def save(self, folder: str | Path, exports: Sequence[str] = (), pictures: str = "all") -> None:
        """Write the files that register.py writes for a pair (docs/registration.md).

        Args:
            folder: of the files; made if it is missing. Files of an earlier pair are replaced or
                removed.
            exports: of "itk", "csv", "numpy".
            pictures: "all", "registered" for registered.png alone, or "none".

        Raises:
            InputError: an unknown export, or a folder that cannot be written to.
        """
        folder = Path(folder)
        unknown = sorted(set(exports) - set(EXPORTS))
        if unknown:
            raise InputError(f"export {unknown[0]!r} is unknown; choose from {', '.join(EXPORTS)}.")
        check_writable(folder, "save")
        for name in PAIR_FILES:
            (folder / name).unlink(missing_ok=True)
        images = RegisteredImages(
            registration=self.registration,
            fixed=_as_stored(self.fixed),
            moving=_as_stored(self.moving),
            fixed_path=_path_of(self.fixed),
            moving_path=_path_of(self.moving),
            asked_for=self.asked_for,
            weights=str(self.weights),
        )
        write_pair(folder, images, exports, pictures)

    def plot(self, path: str | Path | None = None) -> Figure:
        """Figure of the fixed image, the registered image, their checkerboard and the matches.

        Args:
            path: file to which the figure is also written; none when None.
        """
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
        weights: checkpoint of a training run; the weights in save/pretrained when None.
        transform: "affine", "similarity" or "homography"; "quadratic", "deformable" or "auto" for
            a curved transform where held-out patches support it
            (:mod:`registration.curved_refinement`).
        img_size: working size, pixels: diameter of the circle with the area of the field of
            view; that of the checkpoint when None.
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
        if img_size is not None and not MIN_WORKING_PX <= img_size <= MAX_WORKING_PX:
            raise InputError(
                f"--img_size {img_size}: must lie between {MIN_WORKING_PX} and {MAX_WORKING_PX}."
            )
        if weights is None and not DEFAULT_WEIGHTS.is_file():
            raise InputError(
                f"{DEFAULT_WEIGHTS}: no weights are shipped here; train with "
                "train_multimodal_e2e.py (or run `make demo`) and give --weights "
                "save/<mode>/<name>/best.pth."
            )
        self.weights = Path(weights or DEFAULT_WEIGHTS)
        self.transform = transform
        self.matcher, self.plausibility = load_matcher(self.weights, pick_device(device), img_size)

    def register(self, fixed: Image, moving: Image) -> Result:
        """Register one pair.

        Args:
            fixed, moving: paths, or arrays (H, W) or (H, W, 3) RGB, uint8, uint16 or float; the
                sizes may differ.

        Returns:
            The result in original pixels. A pair that cannot be registered has the status "failed"
            and a reason.

        Raises:
            InputError: an image that cannot be used, or a right and a left eye.
        """
        stored_fixed, stored_moving = _as_stored(fixed), _as_stored(moving)
        _check_side(stored_fixed, stored_moving)
        registration = register_pair(
            self.matcher,
            gray_of(stored_fixed.pixels, _path_of(fixed) or GIVEN),
            gray_of(stored_moving.pixels, _path_of(moving) or GIVEN),
            self.transform,
            self.plausibility,
        )
        return Result(registration, fixed, moving, self.transform, self.weights)


def _check_side(fixed: StoredImage, moving: StoredImage) -> None:
    """Refuse a pair of which the files themselves say that it shows two different eyes."""
    if {fixed.laterality, moving.laterality} == {"R", "L"}:
        sides = {"R": "right", "L": "left"}
        raise InputError(
            f"the fixed image is of the {sides[fixed.laterality]} eye, the moving image of the "
            f"{sides[moving.laterality]} eye, as their files say; give images of one eye."
        )


def _path_of(image: Image) -> str | None:
    """The path of an image; None of an array."""
    return None if isinstance(image, np.ndarray) else str(image)


def _as_stored(image: Image) -> StoredImage:
    """An image as stored; that of an array has uint8, uint16 or float32 pixels."""
    if isinstance(image, (str, Path)):
        return read_stored(image)
    if not isinstance(image, np.ndarray) or image.dtype.kind not in "buif":
        raise InputError(
            f"an image was given as {getattr(image, 'dtype', type(image).__name__)}; a path or an "
            "array of uint8, uint16 or float is needed."
        )
    is_picture = image.ndim == 2 or (image.ndim == 3 and image.shape[2] >= 3)
    if not is_picture or min(image.shape[:2]) < MIN_SIDE_PX:
        raise InputError(
            f"an image of shape {image.shape} was given; (H, W) or (H, W, 3) with at least "
            f"{MIN_SIDE_PX} px a side needed."
        )
    return StoredImage(as_storable(image if image.ndim == 2 else image[..., :3]))


def _as_picture(image: Image) -> np.ndarray:
    """(H, W) or (H, W, 3) float32 in [0, 1]."""
    if not isinstance(image, np.ndarray):
        return read_color(image)
    return to_unit_range(_as_stored(image).pixels, GIVEN)
