"""The training step of LoFTR v3."""

from __future__ import annotations

import torch

from geometry.cells import CellMatches, find_cell_matches, vessel_cells
from loss.vessel_matching import VesselLossSettings, VesselObjective, VesselWeights, choose_for_fine
from model.loftr_modules import COARSE_STRIDE, HALF_WINDOW_PX
from model.loftr_vessel import LoFTRVessel
from training.step_meter import StepMeter
from training.task import StepOutput


class LoFTRStep:
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
            batch: collated views of ``dataset.aligned_pairs.AlignedPairs``, on the device.
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
