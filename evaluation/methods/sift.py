"""SIFT (Lowe, IJCV 2004) on locally equalised images, with the ratio test and the mutual check."""

from __future__ import annotations

import cv2
import numpy as np

from evaluation.method import Correspondences, Method, MethodSetting, by_matches

RATIO, CONTRAST_THRESHOLD, CLAHE_LIMIT, CLAHE_TILES, MAX_KEYPOINTS = 0.85, 0.02, 3.0, 8, 4000


def find(fixed: np.ndarray, moving: np.ndarray) -> Correspondences:
    """Correspondences of two grey images (H, W) float32 in [0, 1]."""
    equalise = cv2.createCLAHE(CLAHE_LIMIT, (CLAHE_TILES, CLAHE_TILES))
    detector = cv2.SIFT_create(nfeatures=MAX_KEYPOINTS, contrastThreshold=CONTRAST_THRESHOLD)
    points, descriptors = [], []
    for image in (fixed, moving):
        keypoints, described = detector.detectAndCompute(
            equalise.apply((image * 255.0 + 0.5).astype(np.uint8)), None
        )
        points.append(np.array([keypoint.pt for keypoint in keypoints], np.float64).reshape(-1, 2))
        descriptors.append(described)
    if min(len(each) for each in points) < 2:
        return Correspondences(np.zeros((0, 2)), np.zeros((0, 2)))
    matcher = cv2.BFMatcher(cv2.NORM_L2)
    nearest, back = matcher.knnMatch(*descriptors, k=2), matcher.match(*descriptors[::-1])
    kept = [
        first
        for first, second in nearest
        if first.distance < RATIO * second.distance
        and back[first.trainIdx].trainIdx == first.queryIdx
    ]
    rows, columns = [match.queryIdx for match in kept], [match.trainIdx for match in kept]
    return Correspondences(points[0][rows], points[1][columns])


def make(setting: MethodSetting) -> Method:
    """See ``evaluation.method``."""
    return by_matches(
        find,
        setting,
        {
            "ratio": RATIO,
            "mutual": True,
            "contrast_threshold": CONTRAST_THRESHOLD,
            "clahe": [CLAHE_LIMIT, CLAHE_TILES],
            "max_keypoints": MAX_KEYPOINTS,
        },
    )
