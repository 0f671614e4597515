"""The joint objective of the end-to-end training: a weighted sum of the terms in ``TERMS``.

``L_total = sum of w_name L_name``; all terms are computed from the first step, in every step. To
add a term, write its function of :class:`loss.term_inputs.TermInputs` in a new file of this folder
and add one line to ``TERMS``. Logs and curves find it by its name.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch

from geometry.matrices import inverse
from geometry.rasters import valid_overlaps
from loss.agreement import count_agreeing
from loss.candidates import count_repeated, observe_candidates
from loss.descriptor import DESCRIPTOR_OBJECTIVES, descriptor_term
from loss.detections import (
    DescriptorSampler,
    Detections,
    FeatureMaps,
    KeypointExtractor,
    find_detections,
)
from loss.detector import detector_term
from loss.forms import GENERATED_ONLY, form_figures
from loss.geometric import geometric_term, plan_term
from loss.keypoint_places import AdmittedPlaces, Memory, admitted_places, near_places
from loss.observations import BatchObservations
from loss.pke import pke_term
from loss.term_inputs import TermFunction, TermInputs, TermSettings
from loss.tolerance import Tolerances, moved_to_detections
from loss.value_map import ValueMap
from utils.errors import InputError


class LossTerm(NamedTuple):
    """A term of the joint objective.

    Attributes:
        function: computes the term of a batch.
        default_weight: its weight where a config has no ``loss.weights``; with 0 it is only logged.
    """

    function: TermFunction
    default_weight: float = 0.0


# By name, in the order of the sum.
TERMS: dict[str, LossTerm] = {
    "det": LossTerm(detector_term, default_weight=1.0),
    "des": LossTerm(descriptor_term, default_weight=1.0),
    "geo": LossTerm(geometric_term, default_weight=0.5),
    "pke": LossTerm(pke_term, default_weight=0.5),
    "geo_plan": LossTerm(plan_term),
}


def default_weights() -> dict[str, float]:
    """Weights of the terms that are part of the objective by default."""
    return {name: term.default_weight for name, term in TERMS.items() if term.default_weight}


@dataclass(frozen=True)
class ObjectiveSettings(TermSettings):
    """Settings of the terms (:class:`loss.term_inputs.TermSettings`) and their weights.

    Attributes:
        weights: by name of the term, see ``TERMS``; a term without a weight has weight 0 and is
            only logged.

    Raises:
        InputError: unknown term or descriptor loss.
    """

    weights: dict[str, float] = field(default_factory=default_weights)

    def __post_init__(self) -> None:
        unknown = sorted(set(self.weights) - set(TERMS))
        if unknown:
            raise InputError(
                f"loss.weights: unknown term{'s' * (len(unknown) > 1)} {', '.join(unknown)}; "
                f"known are {', '.join(TERMS)}."
            )
        if self.descriptor not in DESCRIPTOR_OBJECTIVES:
            raise InputError(
                f"loss.descriptor: '{self.descriptor}' is unknown; choose from "
                f"{', '.join(DESCRIPTOR_OBJECTIVES)}."
            )

    def weight(self, name: str) -> float:
        """Weight of a term; 0 if the settings do not name it."""
        return self.weights.get(name, 0.0)


class ObjectiveResult(NamedTuple):
    """Result of the joint objective for a batch.

    Attributes:
        losses: each term by name, then ``total``; scalars with graph. Then, in a run of several
            forms of samples, the weighted terms for each form, without graph.
        n_valid: number of samples that contributed to each term; scalars.
        counts: for the log; scalars.
        observations: of the samples.
    """

    losses: dict[str, torch.Tensor]
    n_valid: dict[str, torch.Tensor]
    counts: dict[str, torch.Tensor]
    observations: BatchObservations


class JointObjective:
    """Computes all terms of a batch and their weighted sum.

    Independent of the network: the functions that interpolate its maps are passed in. No operation
    loops over the samples of a batch or reads a value on the host, so that a GPU need not wait.

    Args:
        settings: weights and settings.
        sample_descriptors: interpolates unit descriptors of a descriptor map at pixel positions.
        extract_keypoints: finds detections of a detector map inside a mask.
        forms: of the samples of the run, see :data:`dataset.view_sources.FORMS`.
    """

    def __init__(
        self,
        settings: ObjectiveSettings,
        sample_descriptors: DescriptorSampler,
        extract_keypoints: KeypointExtractor,
        forms: Sequence[str] = GENERATED_ONLY,
    ) -> None:
        self.settings = settings
        self.sample_descriptors = sample_descriptors
        self.extract_keypoints = extract_keypoints
        self.forms = tuple(forms)

    def __call__(
        self,
        fixed_features: FeatureMaps,
        moving_features: FeatureMaps,
        batch: Mapping[str, Any],
        value_map: ValueMap,
    ) -> ObjectiveResult:
        """All terms of a batch.

        Args:
            fixed_features, moving_features: ``detector`` (B, 1, H, W) in [0, 1] and
                ``descriptors`` (B, D, h, w).
            batch: collated views of ``dataset.aligned_pairs.AlignedPairs``.
            value_map: read only; apply the returned observations after the optimizer step.

        Raises:
            ValueError: a sample of a form that the run does not have.
        """
        inputs = self._inputs(fixed_features, moving_features, batch, value_map)
        terms = {}
        for name, term in TERMS.items():
            # A term without a weight is only logged, so it needs no graph.
            with torch.set_grad_enabled(torch.is_grad_enabled() and self.settings.weight(name) > 0):
                terms[name] = term.function(inputs)
        losses = {name: term.mean() for name, term in terms.items()}
        weighted = [self.settings.weight(name) * loss for name, loss in losses.items()]
        losses["total"] = sum(weighted[1:], start=weighted[0])
        valid = torch.stack([term.valid for term in terms.values()])
        n_valid = dict(zip(terms, valid.sum(1).unbind(), strict=True))
        empty = dict(zip(terms, (~valid).sum(1).unbind(), strict=True))
        counts = {f"empty_{name}": number for name, number in empty.items()}
        weighted_terms = {name: terms[name] for name in terms if self.settings.weight(name) > 0}
        by_form, n_valid_by_form = form_figures(weighted_terms, batch["form"], self.forms)
        with torch.no_grad():
            places, pke_counts = observe_candidates(inputs)
            pke_counts |= count_repeated(inputs)
            matches = count_agreeing(inputs)
        return ObjectiveResult(
            losses=losses | by_form,
            n_valid=n_valid | n_valid_by_form,
            counts=counts | pke_counts,
            observations=BatchObservations(
                batch["key"], batch["form"], inputs.memory.own.points, places, matches
            ),
        )

    def _inputs(
        self,
        fixed: FeatureMaps,
        moving: FeatureMaps,
        batch: Mapping[str, Any],
        value_map: ValueMap,
    ) -> TermInputs:
        """What the terms of a batch are computed from."""
        H = batch["H_fix_to_mov"], inverse(batch["H_fix_to_mov"])
        overlaps = valid_overlaps(*H, batch["fixed_fov"], batch["moving_fov"])
        detections = [
            find_detections(
                self.extract_keypoints,
                self.sample_descriptors,
                features,
                batch[f"{role}_fov"],
                overlap,
                H_to_other,
            )
            for role, features, overlap, H_to_other in zip(
                ("fixed", "moving"), (fixed, moving), overlaps, H, strict=True
            )
        ]
        tolerances = Tolerances.of(batch)
        memory = Memory.of(batch, value_map)
        places = admitted_places(memory, batch, overlaps[0])
        if tolerances.inexact:
            places = _at_detections(places, detections[0], detections[1], tolerances)
        return TermInputs(
            fixed=fixed,
            moving=moving,
            batch=batch,
            H_mov_to_fix=H[1],
            overlap=overlaps[0],
            moving_overlap=overlaps[1],
            junctions=self.extract_keypoints(batch["fixed_heatmap"], overlaps[0])[0],
            fixed_detections=detections[0],
            moving_detections=detections[1],
            memory=memory,
            places=places,
            near_admitted={
                role: near_places(batch[f"{role}_fov"], shown, self.settings.junction_sigma_px)
                for role, shown in (("fixed", places.in_fixed), ("moving", places.in_moving))
            },
            tolerances=tolerances,
            settings=self.settings,
            sample_descriptors=self.sample_descriptors,
        )


def _at_detections(
    places: AdmittedPlaces, fixed: Detections, moving: Detections, tolerances: Tolerances
) -> AdmittedPlaces:
    """Admitted places at the detections of each image within the tolerance.

    A place is remembered in one frame. Where the transform is inexact, the spot of a label would
    otherwise be drawn beside the keypoint that the other image shows.
    """
    return places._replace(
        in_fixed=moved_to_detections(places.in_fixed, fixed.points, tolerances.in_fixed),
        in_moving=moved_to_detections(places.in_moving, moving.points, tolerances.in_moving),
    )
