"""Mutual information (Mattes et al., IEEE TMI 2003) of the grey levels, by SimpleITK: an affine transform, coarse to fine.

Mutual information needs no inversion of the moving image: it measures whether one grey level predicts the other, in whatever
way.
"""

from __future__ import annotations

import numpy as np
import SimpleITK as sitk

from evaluation.method import Method, MethodSetting, WorkingPair, by_matrix

BINS, SAMPLED_SHARE, ITERATIONS = 32, 0.25, 150
SHRINK, SIGMAS_PX = (8, 4, 2, 1), (4.0, 2.0, 1.0, 0.0)


def find(work: WorkingPair) -> np.ndarray:
    """``H_fix_to_mov`` (3, 3) in working pixels.

    Raises:
        RuntimeError: ITK found too little overlap.
    """
    # One thread: with several, the order of the sums changes the result from run to run.
    sitk.ProcessObject.SetGlobalDefaultNumberOfThreads(1)
    fixed, moving = (sitk.GetImageFromArray(side.image.astype(np.float32)) for side in work)
    method = sitk.ImageRegistrationMethod()
    # Only the retina: the black around it would be the strongest structure of all.
    for side, set_mask in zip(
        work, (method.SetMetricFixedMask, method.SetMetricMovingMask), strict=True
    ):
        set_mask(sitk.GetImageFromArray(side.field_of_view.astype(np.uint8)))
    method.SetMetricAsMattesMutualInformation(BINS)
    method.SetMetricSamplingStrategy(method.RANDOM)
    method.SetMetricSamplingPercentage(SAMPLED_SHARE, seed=1)
    method.SetInterpolator(sitk.sitkLinear)
    method.SetShrinkFactorsPerLevel(SHRINK)
    method.SetSmoothingSigmasPerLevel(SIGMAS_PX)
    method.SetOptimizerAsRegularStepGradientDescent(
        learningRate=1.0, minStep=1e-4, numberOfIterations=ITERATIONS, relaxationFactor=0.5
    )
    method.SetOptimizerScalesFromPhysicalShift()
    start = sitk.CenteredTransformInitializer(
        fixed, moving, sitk.AffineTransform(2), sitk.CenteredTransformInitializerFilter.GEOMETRY
    )
    method.SetInitialTransform(start, inPlace=True)
    method.Execute(fixed, moving)
    linear, centre = np.array(start.GetMatrix()).reshape(2, 2), np.array(start.GetCenter())
    H = np.eye(3)
    H[:2, :2] = linear
    H[:2, 2] = np.array(start.GetTranslation()) + centre - linear @ centre
    return H


def make(setting: MethodSetting) -> Method:
    """See ``evaluation.method``."""
    return by_matrix(
        find,
        setting,
        {
            "simpleitk": sitk.Version_VersionString(),
            "transform": "affine",
            "bins": BINS,
            "sampled_share": SAMPLED_SHARE,
            "shrink": list(SHRINK),
            "sigmas_px": list(SIGMAS_PX),
            "iterations": ITERATIONS,
            "mask": "field of view",
            "start": "identity, centre on centre",
        },
    )
