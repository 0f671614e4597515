"""Warping single images by OpenCV: the same as the project's one warp."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from helpers import blurred_noise

from geometry.matrices import affine_about, image_centre
from geometry.rasters import warp_image, warp_planes

SIZE, OUT_SIZE = (90, 130), (80, 64)
MATRICES = {
    "identity": np.eye(3),
    "turned": affine_about(37.0, 0.8, 0.05, image_centre(OUT_SIZE), image_centre(SIZE)),
    "mirrored": affine_about(-9.0, 1.1, 0, image_centre(OUT_SIZE), image_centre(SIZE), True),
    "reduced": affine_about(160.0, 1.9, 0.0, image_centre(OUT_SIZE), image_centre(SIZE)),
    "half outside": affine_about(5.0, 1.0, 0.0, (0, 0), (100.0, 60.0)),
    "outside": affine_about(5.0, 1.0, 0.0, (0, 0), (300.0, 60.0)),
}


@pytest.mark.parametrize("antialias", [False, True])
@pytest.mark.parametrize("name", list(MATRICES))
def test_planes_are_warped_as_tensors_are(name, antialias):
    """For every number of planes: OpenCV has different code for 1, 2, 3, 4 and more channels."""
    noise = blurred_noise((6 * SIZE[0], SIZE[1])).reshape(6, *SIZE)
    planes = (255 * (noise - noise.min()) / (noise.max() - noise.min())).astype(np.uint8)
    H = MATRICES[name]
    expected = warp_image(
        torch.from_numpy(planes)[None].float(),
        torch.from_numpy(H).float()[None],
        OUT_SIZE,
        antialias=antialias,
    )[0].numpy()
    assert name == "outside" or expected.std() > 10
    for count in range(1, 7):
        warped = warp_planes(list(planes[:count]), H, OUT_SIZE, antialias, factor=1 / 255)
        assert warped.dtype == np.float32
        # The outermost row or column of source pixels may be lost to rounding in either.
        np.testing.assert_allclose(warped, expected[:count] / 255, atol=1e-3)
