"""The training step of LoFTR v3."""

from __future__ import annotations

import argparse
from dataclasses import dataclass, field, replace
from typing import Any

import torch

from dataset.generated_pairs import DataSettings
from geometry.cells import CellMatches, find_cell_matches, vessel_cells
from loss.vessel_matching import VesselLossSettings, VesselObjective, VesselWeights, choose_for_fine
from model.loftr_modules import COARSE_STRIDE, HALF_WINDOW_PX
from model.loftr_vessel import LoFTRSettings, LoFTRVessel
from registration.loftr_matcher import LoFTRMatchSettings
from training.config import RunConfig, given
from training.data import ViewDraw
from training.settings import TrainSettings
from training.step_meter import StepMeter
from training.task import StepOutput
from utils.errors import InputError

STAGES = ("base", "v3")
# Arguments of the loss for each --mask; "strict" keeps the eps of the config.
MASKS: dict[str, dict[str, Any]] = {
    "strict": {"mask": True},
    "soft": {"mask": True, "eps": 0.1},
    "none": {"mask": False},
}
# The views need a junction heatmap, which this objective does not use.
JUNCTION_SIGMA_PX = 2.0
FROZEN_IN_V3 = ("backbone", "pos_encoding", "fine_preprocess")  # plan LoFTR v3
VIEW_SEED_STEP = 1000  # distance of the view seeds of the stages: each stage draws other views


@dataclass(frozen=True)
class StageSettings:
    """Settings that differ between the stages.

    Attributes:
        freeze: modules that do not train, see ``model.loftr_modules.MODULES``.
        photometric: randomise brightness, contrast, noise and blur; off in plan LoFTR v3.
        loss: of the vessel loss.
        train: of the training loop.
    """

    freeze: tuple[str, ...] = ()
    photometric: bool = False
    loss: VesselLossSettings = field(default_factory=VesselLossSettings)
    train: TrainSettings = field(default_factory=TrainSettings)


@dataclass(frozen=True)
class LoFTRConfig(RunConfig):
    """Settings of a run of LoFTR.

    Attributes:
        model: arguments of the network.
        match: of the LoFTR matcher.
        data: split of the generated data; ``photometric`` must be off, because it is a setting of
            the stages.
        base, v3: settings of the two stages.
        stage: the stage that this run trains, "base" or "v3"; set by the script, not by a file.
    """

    model: LoFTRSettings = field(default_factory=LoFTRSettings)
    match: LoFTRMatchSettings = field(default_factory=LoFTRMatchSettings)
    data: DataSettings = field(default_factory=lambda: DataSettings(photometric=False))
    base: StageSettings = field(default_factory=StageSettings)
    v3: StageSettings = field(default_factory=lambda: StageSettings(freeze=FROZEN_IN_V3))
    stage: str = "v3"

    @property
    def current(self) -> StageSettings:
        """Settings of the stage that this run trains."""
        return {"base": self.base, "v3": self.v3}[self.stage]

    @property
    def loop(self) -> TrainSettings:
        """See :attr:`training.config.RunConfig.loop`."""
        return self.current.train

    def with_loop(self, loop: TrainSettings) -> LoFTRConfig:
        """See :meth:`training.config.RunConfig.with_loop`."""
        return self.with_current(replace(self.current, train=loop))

    def with_current(self, settings: StageSettings) -> LoFTRConfig:
        """The same config with other settings of the stage that this run trains.

        Args:
            settings: replace ``current``.
        """
        if self.stage == "base":
            return replace(self, base=settings)
        return replace(self, v3=settings)

    def overridden(self, args: argparse.Namespace) -> LoFTRConfig:
        """See :meth:`training.config.RunConfig.overridden`; adds --mask, --eps, --freeze and
        --photometric.

        Args:
            args: parsed by ``train_loftr_v3.get_loftr_parser``.

        Raises:
            InputError: arguments that contradict each other.
        """
        if args.mask == "none" and args.eps is not None:
            raise InputError(
                "--eps: without a mask (--mask none) background has no weight of its own; leave "
                "--eps out."
            )
        if args.freeze is not None and "none" in args.freeze and len(args.freeze) > 1:
            raise InputError(
                f"--freeze {' '.join(args.freeze)}: give either none or names of modules."
            )
        config = super().overridden(args)
        current = config.current
        mask = MASKS[args.mask] if args.mask else {}
        loss = replace(current.loss, **{**mask, **given(eps=args.eps)})
        freeze = None if args.freeze is None else tuple(n for n in args.freeze if n != "none")
        return config.with_current(
            replace(current, loss=loss, **given(freeze=freeze, photometric=args.photometric))
        )

    def size_multiple(self) -> int:
        """See :meth:`training.config.RunConfig.size_multiple`."""
        model = self.build_model()
        model.freeze(self.current.freeze)
        if self.data.photometric:
            raise InputError(
                "data.photometric is a setting of the stages here; set base.photometric or "
                "v3.photometric."
            )
        if not any(parameter.requires_grad for parameter in model.parameters()):
            raise InputError(
                "--freeze: no parameter is left to train; leave loftr_coarse or loftr_fine out of "
                "it."
            )
        return model.size_multiple

    def build_model(self) -> LoFTRVessel:
        """An untrained network; nothing is frozen yet.

        Raises:
            InputError: impossible settings of the network.
        """
        return LoFTRVessel(self.model)

    def view_draw(self) -> ViewDraw:
        """What the training views of the current stage are drawn with."""
        return ViewDraw(
            data=replace(self.data, photometric=self.current.photometric),
            seed=self.seed + VIEW_SEED_STEP * STAGES.index(self.stage),
            junction_sigma_px=JUNCTION_SIGMA_PX,
        )


class VesselStep:
    """True matches, forward pass and vessel loss of one batch; see ``TrainingTask.step``.

    Args:
        model: the unwrapped network, for the offset of its grid of cells.
        settings: of the loss.
        device: on which the step runs.
        world_size: number of processes.
    """

    def __init__(
        self,
        model: LoFTRVessel,
        settings: VesselLossSettings,
        device: torch.device,
        world_size: int = 1,
    ) -> None:
        self.settings = settings
        self.cell_offset_px = model.cell_offset_px
        self.objective = VesselObjective(settings, HALF_WINDOW_PX)
        self.meter = StepMeter(device, world_size)

    def __call__(self, network: torch.nn.Module, batch: dict) -> StepOutput:
        """Loss terms of a batch.

        Args:
            network: the wrapped network.
            batch: collated views of ``dataset.generated_pairs.GeneratedPairs``, on the device.
        """
        cost_of_last_step = self.meter.start()
        matches = find_cell_matches(
            batch["H_fix_to_mov"],
            batch["fixed_fov"],
            batch["moving_fov"],
            COARSE_STRIDE,
            self.cell_offset_px,
        )
        min_area = self.settings.min_vessel_area
        fixed_vessel = vessel_cells(batch["fixed_mask"], COARSE_STRIDE, min_area)
        moving_vessel = vessel_cells(batch["moving_mask"], COARSE_STRIDE, min_area)
        weights = self.objective.weights(fixed_vessel, moving_vessel)
        fine_matches = choose_for_fine(
            matches, weights, self.settings.fine_matches * len(batch["key"])
        )
        features = network(batch["fixed_image"], batch["moving_image"], fine_matches)
        terms = self.objective(
            features.similarity, features.offset_px, features.spread, matches, fine_matches, weights
        )
        losses = {name: term.mean() for name, term in terms.items()}
        losses["total"] = self.objective.total(losses)
        counts = {f"empty_{name}": float(term.n_empty()) for name, term in terms.items()}
        counts |= cost_of_last_step
        strict = VesselWeights(fixed_vessel, moving_vessel, 0.0)
        on_vessels = matches.pick(strict.on_vessel(matches))
        counts |= {
            "vessel_matches": float(len(on_vessels.batch)),
            "right_matches": float(count_right(features.similarity, on_vessels)),
        }
        return StepOutput(
            losses=losses,
            n_valid={name: int(term.valid.sum()) for name, term in terms.items()},
            counts=counts,
            observations=[],
        )

    def end(self, observations: list) -> None:
        """Stop the clock; called after the optimizer step.

        Args:
            observations: empty; part of the engine's interface.
        """
        self.meter.stop()


@torch.no_grad()
def count_right(similarity: torch.Tensor, matches: CellMatches) -> int:
    """Number of fixed cells whose most similar moving cell is the true match.

    Args:
        similarity: (B, L, S) logits of all pairs of cells.
        matches: the true matches, (M,) rows.
    """
    best = similarity[matches.batch, matches.fixed_cell].argmax(dim=1)
    return int((best == matches.moving_cell).sum())
