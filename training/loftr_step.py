"""The training step of LoFTR v3."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from geometry.cells import CellMatches, find_cell_matches, possible_cells, vessel_cells
from geometry.matrices import size_of_raster
from loss.forms import GENERATED_ONLY, form_figures
from loss.tolerance import linear_scale
from loss.vessel_matching import (
    VesselLossSettings,
    VesselObjective,
    VesselWeights,
    choose_for_fine,
    of_exact_samples,
)
from model.loftr_modules import COARSE_STRIDE, HALF_WINDOW_PX
from model.loftr_vessel import LoFTRVessel
from training.step_meter import StepMeter
from training.step_output import StepOutput


class LoFTRStep:
    """True matches, forward pass and vessel loss of one batch; see ``TrainingTask.step``.

    Args:
        model: the unwrapped network, for the offset of its grid of cells.
        settings: of the loss.
        device: on which the step runs.
        world_size: number of processes.
        forms: of the samples of the run, see :data:`dataset.view_sources.FORMS`; with several,
            both terms are logged for each of them too.
    """

    def __init__(
        self,
        model: LoFTRVessel,
        settings: VesselLossSettings,
        device: torch.device,
        world_size: int = 1,
        forms: Sequence[str] = GENERATED_ONLY,
    ) -> None:
        self.settings, self.forms = settings, tuple(forms)
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
        tolerance = batch["tolerance_px"]
        fine_matches = choose_for_fine(
            of_exact_samples(matches, tolerance),
            weights,
            self.settings.fine_matches * len(batch["key"]),
        )
        features = network(batch["fixed_image"], batch["moving_image"], fine_matches)
        terms = self.objective(
            features.similarity,
            features.offset_px,
            features.spread,
            matches,
            fine_matches,
            weights,
            tolerance,
            self._possible(batch),
        )
        losses = {name: term.mean() for name, term in terms.items()}
        losses["total"] = self.objective.total(losses)
        n_valid = {name: term.valid.sum() for name, term in terms.items()}
        by_form, n_valid_by_form = form_figures(terms, batch["form"], self.forms)
        empty = {f"empty_{name}": term.n_empty() for name, term in terms.items()}
        strict = VesselWeights(fixed_vessel, moving_vessel, 0.0)
        on_vessels = matches.pick(strict.on_vessel(matches))
        counted = count_matches(features.similarity, on_vessels)
        return StepOutput(
            losses=losses | by_form,
            n_valid=n_valid | n_valid_by_form,
            counts=empty | cost_of_last_step | counted,
        )

    def _possible(self, batch: dict) -> torch.Tensor | None:
        """Pairs of cells that may match too, (B, L, S) bool; None if all samples are exact."""
        tolerance, H = batch["tolerance_px"], batch["H_fix_to_mov"]
        if not bool((tolerance > 0).any()):
            return None
        sizes = size_of_raster(batch["fixed_fov"]), size_of_raster(batch["moving_fov"])
        in_moving = tolerance * linear_scale(H)
        return possible_cells(H, in_moving, *sizes, COARSE_STRIDE, self.cell_offset_px)

    def end(self, observations: list) -> None:
        """Stop the clock; called after the optimizer step.

        Args:
            observations: empty; part of the engine's interface.
        """
        self.meter.stop()


def count_matches(
    similarity: torch.Tensor, on_vessels: CellMatches
) -> dict[str, torch.Tensor | float]:
    """The counts ``vessel_matches`` and ``right_matches`` of the log.

    Args:
        similarity: (B, L, S) logits of all pairs of cells.
        on_vessels: true matches of two cells that both contain a vessel.
    """
    return {
        "vessel_matches": float(len(on_vessels.batch)),
        "right_matches": count_right(similarity, on_vessels),
    }


@torch.no_grad()
def count_right(similarity: torch.Tensor, matches: CellMatches) -> torch.Tensor:
    """Number of fixed cells whose most similar moving cell is the true match, a scalar.

    Args:
        similarity: (B, L, S) logits of all pairs of cells.
        matches: the true matches, (M,) rows.
    """
    best = similarity[matches.batch, matches.fixed_cell].argmax(dim=1)
    return (best == matches.moving_cell).sum()
