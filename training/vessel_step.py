"""The training step of LoFTR v3."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch

from dataset.generated_pairs import DataSettings
from dataset.views import ViewGeometry
from geometry.cells import CellMatches, find_cell_matches, vessel_cells
from geometry.estimation import Plausibility
from loss.vessel_matching import VesselLossSettings, VesselObjective, VesselWeights, choose_for_fine
from model.loftr_vessel import COARSE_STRIDE, HALF_WINDOW_PX, LoFTRVessel
from registration.loftr_matcher import LoFTRMatchSettings
from registration.trained_matchers import LoFTRSettings
from training.settings import TrainSettings
from training.step_meter import StepMeter
from training.task import StepOutput
from training.validation import ValidationSettings

DEFAULT_CONFIG = "configs/loftr_v3_lite.yaml"
STAGES = ("base", "v3")
# The plan's masks, as the loss sees them; "strict" keeps the config's eps.
MASKS = {"strict": {"mask": True}, "soft": {"mask": True, "eps": 0.1}, "none": {"mask": False}}
JUNCTION_SIGMA_PX = 2.0


@dataclass(frozen=True)
class StageSettings:
    """What differs between the stages.

    Attributes:
        freeze: modules that do not train, see ``model.loftr_vessel.MODULES``.
        photometric: switch of the domain randomisation; by the plan only geometry varies.
        loss, train: see there.
    """

    freeze: tuple[str, ...] = ()
    photometric: bool = False
    loss: VesselLossSettings = field(default_factory=VesselLossSettings)
    train: TrainSettings = field(default_factory=TrainSettings)


@dataclass(frozen=True)
class LoFTRConfig:
    """Everything that defines a run; the YAML files in configs/ have the same structure. ``stage`` says which of ``base``
    and ``v3`` it is."""

    model: LoFTRSettings = field(default_factory=LoFTRSettings)
    match: LoFTRMatchSettings = field(default_factory=LoFTRMatchSettings)
    plausibility: Plausibility = field(default_factory=Plausibility)
    data: DataSettings = field(default_factory=lambda: DataSettings(photometric=False))
    view: ViewGeometry = field(default_factory=ViewGeometry)
    base: StageSettings = field(default_factory=StageSettings)
    v3: StageSettings = field(
        default_factory=lambda: StageSettings(
            freeze=("backbone", "pos_encoding", "fine_preprocess")
        )
    )
    validation: ValidationSettings = field(default_factory=ValidationSettings)
    seed: int = 0
    stage: str = "v3"

    @property
    def now(self) -> StageSettings:
        """Settings of the stage that is run."""
        return {"base": self.base, "v3": self.v3}[self.stage]


class VesselStep:
    """One training step: supervision from the known transform, the network, the loss.

    Args:
        model: the unwrapped network, for its grid.
        settings: of the loss.
        device: where it runs.
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
        """See :class:`training.task.TrainingTask`."""
        cost_of_the_last = self.meter.start()
        matches = find_cell_matches(
            batch["H_fix_to_mov"],
            batch["fixed_fov"],
            batch["moving_fov"],
            COARSE_STRIDE,
            self.cell_offset_px,
        )
        vessels = [
            vessel_cells(batch[f"{role}_mask"], COARSE_STRIDE, self.settings.min_vessel_area)
            for role in ("fixed", "moving")
        ]
        weights = self.objective.weights(*vessels)
        asked = choose_for_fine(matches, weights, self.settings.fine_matches * len(batch["key"]))
        features = network(batch["fixed_image"], batch["moving_image"], asked)
        terms = self.objective(*features, matches, asked, weights)
        losses = {name: term.mean() for name, term in terms.items()}
        losses["total"] = self.objective.total(losses)
        counts = {
            f"empty_{name}": float(term.n_empty()) for name, term in terms.items()
        } | cost_of_the_last
        on_vessels = matches.pick(VesselWeights(*vessels, 0.0).on_vessel(matches))
        counts |= {
            "vessel_matches": float(len(on_vessels.batch)),
            "right_matches": float(count_right(features.similarity, on_vessels)),
        }
        return StepOutput(
            losses, {name: int(term.valid.sum()) for name, term in terms.items()}, counts, []
        )

    def end(self, observations: list) -> None:
        """The optimizer has taken its step."""
        self.meter.stop()


@torch.no_grad()
def count_right(similarity: torch.Tensor, matches: CellMatches) -> int:
    """Of how many fixed cells the most similar moving cell is the right one."""
    best = similarity[matches.batch, matches.fixed_cell].argmax(dim=1)
    return int((best == matches.moving_cell).sum())


def count_parameters(model: torch.nn.Module) -> str:
    """Trainable and total parameters, for the log."""
    total = sum(parameter.numel() for parameter in model.parameters())
    trained = sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
    return f"{trained:,} of {total:,} parameters train ({trained / total:.0%})"
