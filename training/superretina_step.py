"""The training step of SuperRetina-multimodal."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

import torch

from loss.agreement import Agreement
from loss.forms import GENERATED_ONLY
from loss.joint_objective import TERMS, JointObjective, ObjectiveSettings
from loss.observations import SampleObservation
from loss.value_map import ValueMap
from model.super_retina_multimodal import ModelSettings, SuperRetinaMultimodal
from registration.keypoint_matcher import KeypointMatchSettings
from registration.keypoints import find_keypoints, sample_descriptors
from training.arguments import frozen_names
from training.data import ViewDraw
from training.loop_settings import TrainSettings
from training.run_config import RunConfig, given
from training.step_output import StepOutput


def add_superretina_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of train_multimodal_e2e.py beside those of all training scripts.

    Args:
        parser: is extended.
    """
    for name in TERMS:
        parser.add_argument(
            f"--w_{name}", type=float, metavar="W", help=f"weight of the loss term {name}"
        )
    parser.add_argument(
        "--freeze",
        nargs="+",
        metavar="NAME",
        help="parts of the network that do not train, such as encoder or decoder.blocks.*, or none",
    )


@dataclass(frozen=True)
class SuperRetinaConfig(RunConfig):
    """Settings of a run of SuperRetina-multimodal.

    Attributes:
        model: arguments of the network.
        match: of the keypoint matcher.
        loss: weights and settings of the joint objective.
        train: of the training loop.
    """

    model: ModelSettings = field(default_factory=ModelSettings)
    match: KeypointMatchSettings = field(default_factory=KeypointMatchSettings)
    loss: ObjectiveSettings = field(default_factory=ObjectiveSettings)
    train: TrainSettings = field(default_factory=TrainSettings)

    @property
    def loop(self) -> TrainSettings:
        """See :attr:`training.run_config.RunConfig.loop`."""
        return self.train

    def with_loop(self, loop: TrainSettings) -> SuperRetinaConfig:
        """See :meth:`training.run_config.RunConfig.with_loop`."""
        return replace(self, train=loop)

    def overridden(self, args: argparse.Namespace) -> SuperRetinaConfig:
        """See :meth:`training.run_config.RunConfig.overridden`; adds the weights of the terms
        and --freeze.

        Args:
            args: parsed by ``train_multimodal_e2e.py``.
        """
        config = super().overridden(args)
        weights = given(**{name: getattr(args, f"w_{name}") for name in TERMS})
        loss = replace(config.loss, weights=config.loss.weights | weights)
        train = replace(config.train, **given(freeze=frozen_names(args.freeze)))
        return replace(config, loss=loss, train=train)

    def size_multiple(self) -> int:
        """See :meth:`training.run_config.RunConfig.size_multiple`."""
        return self.build_model().size_multiple

    def build_model(self) -> SuperRetinaMultimodal:
        """An untrained network.

        Raises:
            InputError: impossible settings of the network.
        """
        return SuperRetinaMultimodal(self.model)

    def view_draw(self) -> ViewDraw:
        """What the training views are drawn with."""
        return ViewDraw(
            data=self.data, seed=self.seed, junction_sigma_px=self.loss.junction_sigma_px
        )


def make_objective(
    config: SuperRetinaConfig,
    model: SuperRetinaMultimodal,
    forms: Sequence[str] = GENERATED_ONLY,
) -> JointObjective:
    """The joint objective with the functions that read keypoints and descriptors off this network's
    maps.

    Args:
        config: of the run.
        model: the unwrapped network, for its descriptor stride.
        forms: of the samples of the run.
    """
    pke = config.loss.pke
    return JointObjective(
        config.loss,
        sample_descriptors=lambda maps, points: sample_descriptors(
            maps, points, model.descriptor_stride
        ),
        extract_keypoints=lambda maps, allowed: find_keypoints(
            maps, pke.min_probability, pke.nms_radius_px, pke.max_candidates, allowed, pke.border_px
        ),
        forms=forms,
    )


class SuperRetinaStep:
    """Forward pass and joint objective of one batch; see ``TrainingTask.step``.

    Args:
        config: of the run.
        model: the unwrapped network, for its descriptor stride.
        forms: of the samples of the run, see :data:`dataset.view_sources.FORMS`; with several,
            each term is logged for each of them too.
        observe: called after each optimizer step with the agreements of all samples of the batch,
            in order; None discards them.

    Attributes:
        value_map: state of the keypoint expansion.
        observe: as given.
    """

    def __init__(
        self,
        config: SuperRetinaConfig,
        model: SuperRetinaMultimodal,
        forms: Sequence[str] = GENERATED_ONLY,
        observe: Callable[[list[Agreement]], None] | None = None,
    ) -> None:
        self.objective = make_objective(config, model, forms)
        self.value_map = ValueMap(config.loss.pke)
        self.observe = observe

    def __call__(self, network: torch.nn.Module, batch: dict) -> StepOutput:
        """Loss terms of a batch.

        Args:
            network: the wrapped network.
            batch: collated views of ``dataset.aligned_pairs.AlignedPairs``, on the device.
        """
        fixed, moving = network(batch["fixed_image"], batch["moving_image"])
        result = self.objective(fixed, moving, batch, self.value_map)
        return StepOutput(
            losses=result.losses,
            n_valid=result.n_valid,
            counts=result.counts,
            observations=result.observations,
        )

    def learn(self, observations: list[SampleObservation]) -> None:
        """Update the value map and hand on the agreements; see ``TrainingTask.learn``.

        Args:
            observations: of all processes, in the order of the whole batch.
        """
        self.value_map.apply([each.places for each in observations])
        if self.observe is not None:
            self.observe([each.agreement for each in observations])

    def statistics(self) -> dict[str, float]:
        """Figures of the value map, for the log; see ``TrainingTask.statistics``."""
        return {f"map_{name}": value for name, value in self.value_map.statistics().items()}
