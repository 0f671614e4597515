"""The training step of SuperRetina-multimodal."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch

from dataset.generated_pairs import DataSettings
from dataset.views import ViewGeometry
from geometry.estimation import Plausibility
from loss.joint_objective import JointObjective, ObjectiveSettings
from loss.pke import ValueMap
from model.super_retina_multimodal import SuperRetinaMultimodal
from registration.keypoints import extract_keypoints, sample_descriptors
from registration.matcher import MatchSettings
from registration.trained_matchers import ModelSettings
from training.settings import TrainSettings
from training.task import StepOutput
from training.validation import ValidationSettings

DEFAULT_CONFIG = "configs/superretina_lite.yaml"


@dataclass(frozen=True)
class JointConfig:
    """Everything that defines a run; the YAML files in configs/ have the same structure."""

    model: ModelSettings = field(default_factory=ModelSettings)
    match: MatchSettings = field(default_factory=MatchSettings)
    plausibility: Plausibility = field(default_factory=Plausibility)
    data: DataSettings = field(default_factory=DataSettings)
    view: ViewGeometry = field(default_factory=ViewGeometry)
    loss: ObjectiveSettings = field(default_factory=ObjectiveSettings)
    train: TrainSettings = field(default_factory=TrainSettings)
    validation: ValidationSettings = field(default_factory=ValidationSettings)
    seed: int = 0


def make_objective(config: JointConfig, model: SuperRetinaMultimodal) -> JointObjective:
    """The joint objective, told how to read this network's maps."""
    pke = config.loss.pke
    return JointObjective(
        config.loss,
        sample_descriptors=lambda maps, points: sample_descriptors(
            maps, points, model.descriptor_stride
        ),
        extract_keypoints=lambda maps, allowed: extract_keypoints(
            maps, pke.min_probability, pke.nms_radius_px, pke.max_candidates, allowed, pke.border_px
        ),
    )


class JointStep:
    """One training step: the network and the joint objective.

    Args:
        config: of the run.
        model: the unwrapped network, for its strides.

    Attributes:
        value_map: what the keypoint expansion remembers.
    """

    def __init__(self, config: JointConfig, model: SuperRetinaMultimodal) -> None:
        self.objective, self.value_map = make_objective(config, model), ValueMap(config.loss.pke)

    def __call__(self, network: torch.nn.Module, batch: dict) -> StepOutput:
        """See :class:`training.task.TrainingTask`."""
        fixed, moving = network(batch["fixed_image"], batch["moving_image"])
        result = self.objective(fixed, moving, batch, self.value_map)
        return StepOutput(result.losses, result.n_valid, result.counts, result.observations)
