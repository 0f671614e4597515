"""From two images to a matrix: the pipeline behind register.py, evaluate.py and the validation of a training run.

    image -> working frame -> features -> matches, moving image turned if need be -> robust transform -> ridges settle
    the last pixels -> H_fix_to_mov in original pixels -> where asked for, a transform beyond affine on top

A :class:`Matcher` finds the matches; :class:`SuperRetinaMatcher` is ours.
"""

from __future__ import annotations

import math
import time
from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from itertools import product
from typing import Any, NamedTuple

import numpy as np
import torch
from scipy.stats import norm

from model.affine_refinement import refine_affine
from model.beyond_affine import Choice, estimate_beyond_affine
from model.keypoints import extract_keypoints, match_descriptors, sample_descriptors
from model.refinement import RidgePair
from model.super_retina_multimodal import SuperRetinaMultimodal
from model.working_frame import WorkingImage, to_working_frame
from utils.field_of_view import erode_field
from utils.geometry import (
    MATRIX_KINDS,
    Plausibility,
    Size,
    TransformEstimate,
    compose,
    estimate_transform,
    implausible_because,
    warp_points,
)
from utils.metrics import image_corners
from utils.transforms import CURVED_KINDS, MatrixTransform, Transform, affine_of

TRANSFORMS = ("auto", *MATRIX_KINDS, *CURVED_KINDS)

# Of the logistic model of the confidence, see confidence_of.
CONFIDENCE_BIAS, CONFIDENCE_PER_SIGNIFICANCE, CONFIDENCE_PER_AGREEMENT = -4.8, 0.7, 0.5
MAX_SIGNIFICANCE = 15.0  # more adds nothing to it
# Guided matches that exceed accident by so much leave the ridges the last pixel to settle, and no search for more.
MANY_SIGNIFICANCE = 12.0
# Of proposals, which cost little: guided matching refutes the wrong ones.
MIN_PROPOSAL_INLIERS, MAX_PROPOSALS = 4, 12
MAX_PAIRED = 120  # matches of which any two make a proposal: the most alike
DIFFERENT_PX = 20.0  # at some corner, or two proposals are one


@dataclass(frozen=True)
class MatchSettings:
    """How images are matched.

    Attributes:
        long_side: working size: the field of view of either image is brought to this size, pixels.
        min_probability: weakest detection that counts as a keypoint.
        nms_radius_px: least distance of keypoints, working pixels.
        max_keypoints: at most so many per image.
        max_distance_ratio: Lowe's test on the nearest descriptors; 1 = off.
        field_margin_px: no keypoint nearer to the edge of the field of view, working pixels.
        proposal_threshold_px: residual below which a match agrees with the first proposal, a similarity, working pixels.
        inlier_threshold_px: residual below which a match agrees with the transform itself, working pixels.
        guided_radii_px: once a transform is found, keypoints are matched again among those this near to where it maps
            them, working pixels; one round for each radius, none for an empty list. The first, wide round decides, the
            others refine.
        accident_rate: share of the matches of the wide round that agree with a wrong transform. They lie anywhere within
            the radius, so (threshold / radius)**2 = 4 % do; about twice that once the transform is fitted to them.
        min_significance: by how many standard deviations of such accidents the agreeing matches of a proposal must exceed them;
            what is taken off the best of several proposals for its being the best counts in the confidence only.
        min_confidence: least :func:`confidence_of` of a result that counts as found.
        try_turns: also try copies of the moving image turned by 90, 180 and 270 degrees.
        smaller_copy: where that finds nothing, also try the moving and then the fixed image at this share of the working
            size: the fields of an OCT and a photograph, both at 512 px, differ in scale by 1.6 and more. 1 = off.
        sure_confidence: no further copy is tried once a result is this likely to be right.
        refine: let the ridges of both images settle the last pixels of the transform (:mod:`model.affine_refinement`).
    """

    long_side: int = 512
    min_probability: float = 0.02
    nms_radius_px: int = 4
    max_keypoints: int = 1024
    max_distance_ratio: float = 1.0
    field_margin_px: int = 6
    proposal_threshold_px: float = 5.0
    inlier_threshold_px: float = 3.0
    guided_radii_px: tuple[float, ...] = (15.0, 6.0)
    accident_rate: float = 0.08
    min_significance: float = 3.0
    min_confidence: float = 0.5
    try_turns: bool = True
    smaller_copy: float = 0.6
    sure_confidence: float = 0.97
    refine: bool = True


@dataclass(frozen=True)
class ImageFeatures:
    """Keypoints (N, 2) in *working* pixels, unit descriptors (N, D) torch, detector map (H, W), and the working image."""

    keypoints: np.ndarray
    descriptors: torch.Tensor
    heatmap: np.ndarray
    working: WorkingImage


@dataclass(frozen=True)
class PairMatches:
    """Matches of a pair; all points are pixels of the *working* images.

    Attributes:
        fixed_points, moving_points: (K, 2), row i corresponds.
        similarity: (K,) cosine similarity of the descriptors.
        fixed, moving: the working images, and how they lie in the original ones.
        fixed_keypoints, moving_keypoints: (N, 2), (M, 2), all keypoints, for pictures.
        fixed_heatmap, moving_heatmap: detector maps, for pictures; None where a matcher has none.
        fixed_descriptors, moving_descriptors: (N, D), (M, D), for guided matching; None where a matcher has none.
    """

    fixed_points: np.ndarray
    moving_points: np.ndarray
    similarity: np.ndarray
    fixed: WorkingImage
    moving: WorkingImage
    fixed_keypoints: np.ndarray
    moving_keypoints: np.ndarray
    fixed_heatmap: np.ndarray | None = None
    moving_heatmap: np.ndarray | None = None
    fixed_descriptors: torch.Tensor | None = None
    moving_descriptors: torch.Tensor | None = None


class Matcher(ABC):
    """Finds matches between two images. A new kind of matcher says how it describes one image and matches two.

    Attributes:
        name: what tables call the method.
        settings: see :class:`MatchSettings`.
    """

    name: str
    settings: MatchSettings

    @abstractmethod
    def describe(self, working: WorkingImage, role: str) -> Any:
        """What can be computed of one image alone, in its role, "fixed" or "moving"."""

    @abstractmethod
    def match_described(self, fixed: Any, moving: Any) -> PairMatches:
        """Match two images that were described."""

    def match(self, fixed: np.ndarray, moving: np.ndarray) -> PairMatches:
        """Match two grey images (H, W) float in [0, 1] of any sizes, as they are."""
        return next(
            self.candidates(
                *(to_working_frame(image, self.settings.long_side) for image in (fixed, moving))
            )
        )

    def candidates(
        self, fixed: WorkingImage, moving: WorkingImage, smaller: bool = True
    ) -> Iterator[PairMatches]:
        """Matches of the images as they are, then of turned and of smaller copies; each is computed when it is asked for.

        The fixed image is described once at each size. The frames of the copies hold turn and size, so the candidates all
        mean the same two images.

        Args:
            smaller: also the smaller copies, where the settings have them.
        """
        share = self.settings.smaller_copy if smaller else 1.0
        for fixed_share, moving_shares in (
            ((1.0, (1.0, share)), (share, (1.0,))) if share < 1.0 else ((1.0, (1.0,)),)
        ):
            described = self.describe(fixed.resized(fixed_share), "fixed")
            for moving_share, quarter_turns in product(
                moving_shares, (0, 1, 3, 2) if self.settings.try_turns else (0,)
            ):
                copy = moving.resized(moving_share).turned(quarter_turns)
                yield self.match_described(described, self.describe(copy, "moving"))


@dataclass(frozen=True)
class Registration:
    """Result for one pair, in *original* pixels of both images.

    Attributes:
        status: "ok" or "failed"; ``reason`` says why it failed.
        H_fix_to_mov: (3, 3), or None when failed.
        fixed_points, moving_points: (K, 2) all matches; inliers: (K,) which of them agree with the matrix that they gave, before
            the ridges refined it.
        matches: what the matcher returned.
        seconds: time for features, matches and fit.
        significance: by how many standard deviations the agreeing matches exceed what accident would give.
        agreement: how far the ridges of both images agree better under the matrix than beside it; see
            :func:`model.refinement.ridge_agreement`. 0 when failed.
        confidence: probability in [0, 1] that the matrix is right, by both; 0 when failed.
        transform: what takes fixed to moving pixels: the matrix, or a curved transform that ``H_fix_to_mov`` is the affine part
            of; None when failed. ``transform_reason`` says why this one, where there was a choice.
    """

    status: str
    reason: str
    H_fix_to_mov: np.ndarray | None
    fixed_points: np.ndarray = field(repr=False)
    moving_points: np.ndarray = field(repr=False)
    inliers: np.ndarray = field(repr=False)
    matches: PairMatches = field(repr=False)
    seconds: float
    significance: float = 0.0
    agreement: float = 0.0
    confidence: float = 0.0
    transform: Transform | None = None
    transform_reason: str = ""

    @property
    def n_matches(self) -> int:
        """Number of matches before the robust fit."""
        return len(self.fixed_points)

    @property
    def n_inliers(self) -> int:
        """Number of matches that agree with the matrix."""
        return int(self.inliers.sum())

    @property
    def H_affine(self) -> np.ndarray | None:
        """The affine ``H_fix_to_mov`` (3, 3), whatever the transform: the matrix itself, the one that a curved transform
        refines, or the one that is nearest to a homography where matches agree."""
        if self.transform is None or self.transform.kind != "homography":
            return self.H_fix_to_mov
        return affine_of(self.transform, self.fixed_points[self.inliers])


class SuperRetinaMatcher(Matcher):
    """Detects, describes and matches keypoints with a trained network.

    Args:
        model: the network. It is used in the mode it is in: ours answers alike in training and in evaluation mode.
        settings: see :class:`MatchSettings`.
        device: where the network is.
    """

    name = "superretina"

    def __init__(
        self,
        model: SuperRetinaMultimodal,
        settings: MatchSettings,
        device: torch.device | str = "cpu",
    ) -> None:
        self.model = model
        self.settings = settings
        self.device = torch.device(device)

    @torch.inference_mode()
    def describe(self, working: WorkingImage, role: str) -> ImageFeatures:
        """Keypoints and descriptors of one image."""
        settings = self.settings
        height, width = working.image.shape
        multiple = self.model.size_multiple
        padded = np.pad(working.image, ((0, -height % multiple), (0, -width % multiple)))
        allowed = np.zeros(padded.shape, dtype=np.float32)
        allowed[:height, :width] = erode_field(working.field_of_view, settings.field_margin_px)
        tensor = torch.from_numpy(padded)[None, None].to(
            self.device, memory_format=torch.channels_last
        )
        maps = self.model.describe(tensor, role)
        keypoints, _ = extract_keypoints(
            maps.detector,
            settings.min_probability,
            settings.nms_radius_px,
            settings.max_keypoints,
            torch.from_numpy(allowed)[None, None].to(self.device),
        )[0]
        descriptors = sample_descriptors(
            maps.descriptors, keypoints[None], self.model.descriptor_stride
        )[0]
        return ImageFeatures(
            keypoints.cpu().numpy().astype(np.float64),
            descriptors,
            maps.detector[0, 0, :height, :width].cpu().numpy(),
            working,
        )

    def match_described(self, fixed: ImageFeatures, moving: ImageFeatures) -> PairMatches:
        """Mutual nearest neighbours among the keypoints of both."""
        pairs, similarity = match_descriptors(
            fixed.descriptors, moving.descriptors, self.settings.max_distance_ratio
        )
        rows, columns = pairs.cpu().numpy().T
        return PairMatches(
            fixed.keypoints[rows],
            moving.keypoints[columns],
            similarity.cpu().numpy(),
            fixed.working,
            moving.working,
            fixed.keypoints,
            moving.keypoints,
            fixed.heatmap,
            moving.heatmap,
            fixed.descriptors,
            moving.descriptors,
        )


def match_under(matches: PairMatches, H_fix_to_mov: np.ndarray, radius_px: float) -> PairMatches:
    """Match all keypoints again, each only among those near to where a transform maps it.

    Convention: ``H_fix_to_mov`` and ``radius_px`` are in working pixels.
    """
    mapped = torch.from_numpy(warp_points(matches.fixed_keypoints, H_fix_to_mov))
    near = torch.cdist(mapped, torch.from_numpy(matches.moving_keypoints)) <= radius_px
    pairs, similarity = match_descriptors(
        matches.fixed_descriptors,
        matches.moving_descriptors,
        allowed=near.to(matches.fixed_descriptors.device),
    )
    rows, columns = pairs.cpu().numpy().T
    return replace(
        matches,
        fixed_points=matches.fixed_keypoints[rows],
        moving_points=matches.moving_keypoints[columns],
        similarity=similarity.cpu().numpy(),
    )


class Candidate(NamedTuple):
    """A transform in working pixels, the matches that it was made from, and their :func:`significance`, less what the best of
    several proposals has by accident alone."""

    estimate: TransformEstimate
    matches: PairMatches
    significance: float


def propose_similarity(
    fixed_points: np.ndarray,
    moving_points: np.ndarray,
    fixed_size: Size,
    settings: MatchSettings,
    plausibility: Plausibility,
) -> TransformEstimate:
    """A similarity that a handful of matches agrees with: where to look for more, not yet a result.

    Args:
        fixed_points, moving_points: (K, 2), working pixels, row i corresponds.
        fixed_size: (height, width) of the fixed working image.
    """
    lenient = replace(
        plausibility,
        min_inliers=min(MIN_PROPOSAL_INLIERS, plausibility.min_inliers),
        min_inlier_share=0.0,
        min_spread=0.5 * plausibility.min_spread,
    )
    return estimate_transform(
        fixed_points,
        moving_points,
        fixed_size,
        "similarity",
        settings.proposal_threshold_px,
        lenient,
    )


def other_similarities(
    fixed_points: np.ndarray,
    moving_points: np.ndarray,
    fixed_size: Size,
    threshold_px: float,
    plausibility: Plausibility,
    refuted: np.ndarray | None = None,
) -> list[np.ndarray]:
    """The similarities that most matches agree with among those through any two matches, clearly different ones only.

    Where hardly any match is right, the similarity with the most is often a wrong one, and the right one among the next: all that
    costs is to match again under each.

    Args:
        fixed_points, moving_points: (K, 2), working pixels, row i corresponds.
        refuted: a similarity (3, 3) that was tried already.

    Returns:
        At most ``MAX_PROPOSALS`` matrices (3, 3), the best first.
    """
    # Points as complex numbers: a similarity is then z -> a z + b.
    fixed, moving = (points @ np.array([1.0, 1j]) for points in (fixed_points, moving_points))
    first, second = np.triu_indices(len(fixed), 1)
    far = np.abs(fixed[second] - fixed[first]) > 0.1 * max(fixed_size)
    first, second = first[far], second[far]
    a = (moving[second] - moving[first]) / (fixed[second] - fixed[first])
    plausible = (np.abs(a) >= plausibility.min_scale) & (np.abs(a) <= plausibility.max_scale)
    a, first = a[plausible], first[plausible]
    b = moving[first] - a * fixed[first]
    counts = np.concatenate(
        [
            (np.abs(part_a[:, None] * fixed + part_b[:, None] - moving) < threshold_px).sum(axis=1)
            for part_a, part_b in zip(np.array_split(a, 8), np.array_split(b, 8), strict=True)
        ]
    )
    corners = image_corners(fixed_size) @ np.array([1.0, 1j])
    known = (
        []
        if refuted is None
        else [(complex(refuted[0, 0], refuted[1, 0]), complex(refuted[0, 2], refuted[1, 2]))]
    )
    chosen = list(known)
    for index in np.argsort(-counts, kind="stable"):
        if len(chosen) - len(known) == MAX_PROPOSALS or counts[index] < MIN_PROPOSAL_INLIERS:
            break
        here = a[index] * corners + b[index]
        if all(
            np.abs(other_a * corners + other_b - here).max() > DIFFERENT_PX
            for other_a, other_b in chosen
        ):
            chosen.append((a[index], b[index]))
    return [
        np.array([[a.real, -a.imag, b.real], [a.imag, a.real, b.imag], [0.0, 0.0, 1.0]])
        for a, b in chosen[len(known) :]
    ]


def estimate_from_matches(
    matches: PairMatches, settings: MatchSettings, transform: str, plausibility: Plausibility
) -> Candidate:
    """Fit a transform, match again under it, and fit again.

    The first fit only proposes: a handful of agreeing matches is enough, and a similarity, which needs two right matches at
    a time where an affine needs three. The second decides: guided matching finds many more under a right proposal and
    hardly any under a wrong one; where it refutes the proposal, it tries the next ones. Further, narrower rounds add accuracy. A
    matcher without descriptors cannot be guided: its first fit decides.
    """

    def fit(current: PairMatches, limits: Plausibility) -> TransformEstimate:
        return estimate_transform(
            current.fixed_points,
            current.moving_points,
            current.fixed.frame.size,
            transform,
            settings.inlier_threshold_px,
            limits,
        )

    if matches.fixed_descriptors is None or not settings.guided_radii_px:
        estimate = fit(matches, plausibility)
        return Candidate(estimate, matches, _significance_of(estimate, settings))
    limits = replace(plausibility, min_inlier_share=0.0)

    def decide(H_proposed: np.ndarray) -> Candidate:
        guided = match_under(matches, H_proposed, settings.guided_radii_px[0])
        estimate = fit(guided, limits)
        decided = _significance_of(estimate, settings)
        return Candidate(_refuse_accidents(estimate, decided, settings), guided, decided)

    size = matches.fixed.frame.size
    proposal = propose_similarity(
        matches.fixed_points, matches.moving_points, size, settings, plausibility
    )
    best = (
        Candidate(proposal, matches, 0.0)
        if proposal.H_fix_to_mov is None
        else decide(proposal.H_fix_to_mov)
    )
    if best.estimate.H_fix_to_mov is None:
        most_alike = np.argsort(-matches.similarity, kind="stable")[:MAX_PAIRED]
        others = other_similarities(
            matches.fixed_points[most_alike],
            matches.moving_points[most_alike],
            size,
            settings.proposal_threshold_px,
            plausibility,
            proposal.H_fix_to_mov,
        )
        tried = [best, *map(decide, others)]
        best = max(
            tried, key=lambda each: (each.estimate.H_fix_to_mov is not None, each.significance)
        )
        # The best of many accidents looks less like one than the first did; Blom's mean of the largest of n normal values.
        expected = float(norm.ppf((len(tried) - 0.375) / (len(tried) + 0.25)))
        best = best._replace(significance=best.significance - expected)
    for radius_px in settings.guided_radii_px[1:]:
        if best.estimate.H_fix_to_mov is None:
            break
        guided = match_under(best.matches, best.estimate.H_fix_to_mov, radius_px)
        best = Candidate(fit(guided, limits), guided, best.significance)
    return best


def significance(n_inliers: int, n_matches: int, accident_rate: float) -> float:
    """By how many standard deviations a number of agreeing matches exceeds that of accidents (binomial)."""
    expected = accident_rate * n_matches
    return (n_inliers - expected) / math.sqrt(max(expected * (1.0 - accident_rate), 1e-9))


def _significance_of(estimate: TransformEstimate, settings: MatchSettings) -> float:
    n_matches = len(estimate.inliers)
    return significance(estimate.n_inliers, n_matches, settings.accident_rate) if n_matches else 0.0


def _refuse_accidents(
    estimate: TransformEstimate, decided: float, settings: MatchSettings
) -> TransformEstimate:
    """Turn an estimate into a failure when as many matches would agree with a wrong transform."""
    if estimate.H_fix_to_mov is None or decided >= settings.min_significance:
        return estimate
    reason = f"only {estimate.n_inliers} of {len(estimate.inliers)} nearby matches agree; as many could by accident"
    return TransformEstimate("failed", reason, None, estimate.inliers)


def confidence_of(decided: float, agreement: float) -> float:
    """Probability that a matrix is right, from the significance of its matches and the agreement of the ridges.

    Logistic. ``benchmarks/confidence.py`` fits the coefficients and prints what right and wrong matrices of validation eyes
    show. Those in use are more lenient than its fit, which knows no noise: that hides ridges sooner than junctions. Its last
    line says how high wrong matrices come under them; the model card, how many pairs of different eyes pass.
    """
    evidence = (
        CONFIDENCE_BIAS
        + CONFIDENCE_PER_SIGNIFICANCE * min(decided, MAX_SIGNIFICANCE)
        + CONFIDENCE_PER_AGREEMENT * agreement
    )
    return 1.0 / (1.0 + math.exp(-evidence))


class Judged(NamedTuple):
    """A candidate with what the ridges say of it: ``H_fix_to_mov`` in original pixels, refined (None when there is none), how
    far the ridges agree under it, and the confidence in it."""

    candidate: Candidate
    H_fix_to_mov: np.ndarray | None
    agreement: float
    confidence: float


def judge(
    candidate: Candidate,
    ridges: RidgePair,
    transform: str,
    settings: MatchSettings,
    plausibility: Plausibility,
) -> Judged:
    """Refine a candidate on the ridges, and ask them whether it is right.

    Args:
        ridges: of the images at their full working size, whatever copies of them were matched.
        plausibility: limits on the refined matrix; one beyond them is not refined.
    """
    matches, H_working = candidate.matches, candidate.estimate.H_fix_to_mov
    if H_working is None:
        return Judged(candidate, None, 0.0, 0.0)
    H_fix_to_mov = compose(
        matches.fixed.frame.H_image_to_working,
        H_working,
        np.linalg.inv(matches.moving.frame.H_image_to_working),
    )
    H_fixed_to_ridges, H_moving_to_ridges = (
        image.frame.H_image_to_working for image in ridges.images
    )
    H_ridges = compose(np.linalg.inv(H_fixed_to_ridges), H_fix_to_mov, H_moving_to_ridges)
    if settings.refine:
        guided = matches.fixed_descriptors is not None
        rough = transform == "affine" and not (
            guided and candidate.significance >= MANY_SIGNIFICANCE
        )
        refined = refine_affine(ridges, H_ridges) if rough else ridges.refine(H_ridges, transform)
        fixed_points = warp_points(
            matches.fixed_points[candidate.estimate.inliers],
            compose(np.linalg.inv(matches.fixed.frame.H_image_to_working), H_fixed_to_ridges),
        )
        if not implausible_because(
            refined, fixed_points, len(fixed_points), ridges.ridges[0].shape, plausibility
        ):
            H_ridges = refined
        H_fix_to_mov = compose(H_fixed_to_ridges, H_ridges, np.linalg.inv(H_moving_to_ridges))
    agreement = ridges.agreement(H_ridges)
    return Judged(
        candidate,
        H_fix_to_mov / H_fix_to_mov[2, 2],
        agreement,
        confidence_of(candidate.significance, agreement),
    )


def search(
    matcher: Matcher,
    ridges: RidgePair,
    transform: str,
    plausibility: Plausibility,
    smaller: bool = True,
) -> Judged:
    """The most likely of the matcher's candidates for a pair; further ones are not computed once one is sure.

    One that is less likely than ``min_confidence`` comes back failed, with the reason. ``smaller`` as in ``Matcher.candidates``.
    """
    settings, best = matcher.settings, None
    for matches in matcher.candidates(*ridges.images, smaller):
        candidate = estimate_from_matches(matches, settings, transform, plausibility)
        judged = judge(candidate, ridges, transform, settings, plausibility)
        if best is None or _rank(judged) > _rank(best):
            best = judged
        if best.confidence >= settings.sure_confidence:
            break
    if best.H_fix_to_mov is None or best.confidence >= settings.min_confidence:
        return best
    reason = (
        f"the matches ({best.candidate.significance:.1f} standard deviations above accident) and the vessels laid on each "
        f"other ({best.agreement:.1f} above displaced ones) do not bear the transform out"
    )
    estimate = TransformEstimate("failed", reason, None, best.candidate.estimate.inliers)
    return Judged(best.candidate._replace(estimate=estimate), None, best.agreement, 0.0)


def _rank(judged: Judged) -> tuple[bool, float, float, int]:
    candidate = judged.candidate
    return (
        judged.H_fix_to_mov is not None,
        judged.confidence,
        candidate.significance,
        candidate.estimate.n_inliers,
    )


def register_pair(
    matcher: Matcher,
    fixed: np.ndarray,
    moving: np.ndarray,
    transform: str = "affine",
    plausibility: Plausibility | None = None,
) -> Registration:
    """Register a moving image onto a fixed one.

    Convention: the matrix is ``H_fix_to_mov`` in original pixels of both images.

    Args:
        matcher: finds the matches.
        fixed, moving: (H, W) float in [0, 1]; the sizes may differ.
        transform: one of ``TRANSFORMS``. Beyond affine a matrix is found first, then refined as far as the images bear it out.
        plausibility: limits on the result; the defaults when None.
    """
    start, limits = time.perf_counter(), plausibility or Plausibility()
    ridges = RidgePair(
        *(to_working_frame(image, matcher.settings.long_side) for image in (fixed, moving))
    )
    matrix_kind = transform if transform in MATRIX_KINDS else "affine"
    best = search(matcher, ridges, matrix_kind, limits)
    (estimate, matches, decided), reason = best.candidate, best.candidate.estimate.reason
    chosen = None
    if best.H_fix_to_mov is not None:
        chosen = choose_transform(ridges, best.H_fix_to_mov, transform)
    else:
        # Only to name the reason: copies at full size are enough.
        working = ridges.images
        flipped = search(
            matcher,
            RidgePair(working[0], working[1].mirrored()),
            matrix_kind,
            limits,
            smaller=False,
        )
        if flipped.H_fix_to_mov is not None:
            reason = "the moving image is mirrored: flip it and try again"
    return Registration(
        estimate.status,
        reason,
        best.H_fix_to_mov,
        warp_points(matches.fixed_points, np.linalg.inv(matches.fixed.frame.H_image_to_working)),
        warp_points(matches.moving_points, np.linalg.inv(matches.moving.frame.H_image_to_working)),
        estimate.inliers,
        matches,
        time.perf_counter() - start,
        decided,
        best.agreement,
        best.confidence,
        *(chosen or (None, "")),
    )


def choose_transform(ridges: RidgePair, H_fix_to_mov: np.ndarray, asked: str) -> Choice:
    """The transform of a registered pair in original pixels: the matrix itself, or what refines it.

    Args:
        H_fix_to_mov: (3, 3), original pixels.
        asked: one of ``TRANSFORMS``.
    """
    if asked in MATRIX_KINDS:
        return Choice(MatrixTransform(H_fix_to_mov, asked), "")
    H_fixed_to_working, H_moving_to_working = (
        image.frame.H_image_to_working for image in ridges.images
    )
    H_working = compose(np.linalg.inv(H_fixed_to_working), H_fix_to_mov, H_moving_to_working)
    choice = estimate_beyond_affine(ridges, H_working, asked)
    return Choice(
        choice.transform.rescaled(H_fixed_to_working, np.linalg.inv(H_moving_to_working)),
        choice.reason,
    )
