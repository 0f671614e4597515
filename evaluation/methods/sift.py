"""SIFT (Lowe, IJCV 2004) on contrast-equalised images, with the ratio test and mutual check."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np

from evaluation.method import Method, MethodOptions
from evaluation.method_builders import Correspondences, by_matches


@dataclass(frozen=True)
class SiftConstants:
    """Parameters of the method, chosen by hand."""

    ratio: float = 0.85  # largest ratio of the distances to the nearest two descriptors
    contrast_threshold: float = 0.02  # of the detector; OpenCV's default is 0.04
    clahe_limit: float = 3.0  # clip limit of the histogram equalisation (CLAHE)
    clahe_tiles: int = 8  # tiles per side of the CLAHE
    max_keypoints: int = 4000  # per image, the strongest


SIFT = SiftConstants()


def find(fixed: np.ndarray, moving: np.ndarray) -> Correspondences:
    """Matches of two grey images.

    Args:
        fixed, moving: (H, W) float32 in [0, 1].
    """
    equalise = cv2.createCLAHE(SIFT.clahe_limit, (SIFT.clahe_tiles, SIFT.clahe_tiles))
    # The stubs of OpenCV lack SIFT_create.
    create_detector: Any = cv2.SIFT_create  # type: ignore[attr-defined]
    detector = create_detector(
        nfeatures=SIFT.max_keypoints, contrastThreshold=SIFT.contrast_threshold
    )
    points: list[np.ndarray] = []
    descriptors: list[Any] = []
    for image in (fixed, moving):
        keypoints, described = detector.detectAndCompute(
            equalise.apply((image * 255.0 + 0.5).astype(np.uint8)), None
        )
        points.append(np.array([keypoint.pt for keypoint in keypoints], np.float64).reshape(-1, 2))
        descriptors.append(described)
    if min(len(each) for each in points) < 2:
        return Correspondences(fixed_points=np.zeros((0, 2)), moving_points=np.zeros((0, 2)))
    matcher = cv2.BFMatcher(cv2.NORM_L2)
    nearest = matcher.knnMatch(descriptors[0], descriptors[1], k=2)
    back = matcher.match(descriptors[1], descriptors[0])
    kept = [
        first
        for first, second in nearest
        if first.distance < SIFT.ratio * second.distance
        and back[first.trainIdx].trainIdx == first.queryIdx
    ]
    rows, columns = [match.queryIdx for match in kept], [match.trainIdx for match in kept]
    return Correspondences(fixed_points=points[0][rows], moving_points=points[1][columns])


def make(options: MethodOptions) -> Method:
    """See :func:`evaluation.method_builders.by_matches`."""
    return by_matches(
        find,
        options,
        {
            "ratio": SIFT.ratio,
            "mutual": True,
            "contrast_threshold": SIFT.contrast_threshold,
            "clahe": [SIFT.clahe_limit, SIFT.clahe_tiles],
            "max_keypoints": SIFT.max_keypoints,
        },
    )
