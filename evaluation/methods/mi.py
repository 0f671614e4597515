"""Affine registration by mutual information (Mattes et al., IEEE TMI 2003), with SimpleITK.

Coarse to fine, starting from the identity. Mutual information measures how well one grey level
predicts the other, so the moving image needs no inversion.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import SimpleITK as sitk

from evaluation.method import Method, MethodOptions
from evaluation.method_builders import WorkingPair, by_matrix


@dataclass(frozen=True)
class MutualInformationConstants:
    """Parameters of the optimisation, chosen by hand."""

    bins: int = 32  # of the joint histogram, per image
    sampled_share: float = 0.25  # of the pixels that enter the metric
    iterations: int = 150  # at most, per level
    shrink: tuple[int, ...] = (8, 4, 2, 1)  # subsampling factor of each level
    sigmas_px: tuple[float, ...] = (4.0, 2.0, 1.0, 0.0)  # Gaussian smoothing, working pixels


MI = MutualInformationConstants()


def _configured(working: WorkingPair) -> sitk.ImageRegistrationMethod:
    """The registration with its metric, masked by the fields of view, and its optimiser."""
    method = sitk.ImageRegistrationMethod()
    # The border of the black background would be the strongest structure of the image.
    for side, set_mask in zip(
        working, (method.SetMetricFixedMask, method.SetMetricMovingMask), strict=True
    ):
        set_mask(sitk.GetImageFromArray(side.field_of_view.astype(np.uint8)))
    method.SetMetricAsMattesMutualInformation(MI.bins)
    method.SetMetricSamplingStrategy(method.RANDOM)
    method.SetMetricSamplingPercentage(MI.sampled_share, seed=1)
    method.SetInterpolator(sitk.sitkLinear)
    method.SetShrinkFactorsPerLevel(MI.shrink)
    method.SetSmoothingSigmasPerLevel(MI.sigmas_px)
    method.SetOptimizerAsRegularStepGradientDescent(
        learningRate=1.0, minStep=1e-4, numberOfIterations=MI.iterations, relaxationFactor=0.5
    )
    method.SetOptimizerScalesFromPhysicalShift()
    return method


def find(working: WorkingPair) -> np.ndarray:
    """Estimate the matrix.

    Returns:
        ``H_fix_to_mov`` (3, 3) float64, working pixels.

    Raises:
        RuntimeError: ITK found too little overlap.
    """
    # One thread: with several, the order of the sums changes the result between runs.
    sitk.ProcessObject.SetGlobalDefaultNumberOfThreads(1)
    fixed, moving = (sitk.GetImageFromArray(side.image.astype(np.float32)) for side in working)
    method = _configured(working)
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


def make(options: MethodOptions) -> Method:
    """See :func:`evaluation.method_builders.by_matrix`."""
    return by_matrix(
        find,
        options,
        {
            "simpleitk": sitk.Version_VersionString(),
            "transform": "affine",
            "bins": MI.bins,
            "sampled_share": MI.sampled_share,
            "shrink": list(MI.shrink),
            "sigmas_px": list(MI.sigmas_px),
            "iterations": MI.iterations,
            "mask": "field of view",
            "start": "identity, centre on centre",
        },
    )
