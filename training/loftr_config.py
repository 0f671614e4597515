"""Settings and command-line arguments of LoFTR v3."""

from __future__ import annotations

import argparse
from dataclasses import dataclass, field, replace
from typing import Any

from dataset.aligned_pairs import DataSettings
from loss.vessel_matching import VesselLossSettings
from model.loftr_vessel import MODULES, LoFTRSettings, LoFTRVessel
from registration.loftr_matcher import LoFTRMatchSettings
from training.arguments import frozen_names
from training.data import ViewDraw
from training.loop_settings import TrainSettings
from training.run_config import RunConfig, given
from training.run_folder import Run
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
FROZEN_IN_V3 = ("backbone", "pos_encoding", "fine_preprocess")  # see docs/loftr_v3.md
VIEW_SEED_STEP = 1000  # distance of the view seeds of the stages: each stage draws other views


def add_loftr_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of train_loftr_v3.py beside those of all training scripts.

    Args:
        parser: is extended.
    """
    add = parser.add_argument
    add(
        "--stage", choices=STAGES, help="base trains the whole network, v3 (default) freezes a base"
    )
    add(
        "--freeze",
        nargs="+",
        metavar="MODULE",
        help=f"modules that do not train ({', '.join(MODULES)}), or none",
    )
    add(
        "--mask",
        choices=list(MASKS),
        help="strict: vessels only; soft: eps 0.1; none: every true match counts the same",
    )
    add("--eps", type=float, help="weight of background in the loss")
    add(
        "--mask_gradient",
        action="store_true",
        default=None,
        help="also multiply the gradient of every similarity by its weight in the loss",
    )
    add(
        "--photometric",
        action="store_true",
        default=None,
        help="randomise brightness, contrast, noise and blur of the views too",
    )


@dataclass(frozen=True)
class StageSettings:
    """Settings that differ between the stages.

    Attributes:
        freeze: modules that do not train, see ``model.loftr_modules.MODULES``.
        photometric: randomise brightness, contrast, noise and blur; off by the design of v3.
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
        """See :attr:`training.run_config.RunConfig.loop`."""
        return self.current.train

    def with_loop(self, loop: TrainSettings) -> LoFTRConfig:
        """See :meth:`training.run_config.RunConfig.with_loop`."""
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
        """See :meth:`training.run_config.RunConfig.overridden`; adds --mask, --eps,
        --mask_gradient, --freeze and --photometric.

        Args:
            args: parsed by ``train_loftr_v3.py``.

        Raises:
            InputError: arguments that contradict each other.
        """
        if args.mask == "none" and (args.eps is not None or args.mask_gradient):
            raise InputError(
                "--eps, --mask_gradient: without a mask (--mask none) background has no weight of "
                "its own; leave --eps and --mask_gradient out."
            )
        config = super().overridden(args)
        current = config.current
        mask = MASKS[args.mask] if args.mask else {}
        changes = {**mask, **given(eps=args.eps, mask_gradient=args.mask_gradient)}
        loss = replace(current.loss, **changes)
        freeze = frozen_names(args.freeze)
        return config.with_current(
            replace(current, loss=loss, **given(freeze=freeze, photometric=args.photometric))
        )

    def size_multiple(self) -> int:
        """See :meth:`training.run_config.RunConfig.size_multiple`."""
        model = self.build_model()
        model.freeze(self.current.freeze)
        if self.data.photometric:
            raise InputError(
                "data.photometric is a setting of the stages here; set base.photometric or "
                "v3.photometric."
            )
        if self.loop.freeze:
            raise InputError(
                "train.freeze is a setting of the stages here; set base.freeze or v3.freeze."
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


def check_gradient(run: Run, stage: str) -> None:
    """Refuse to resume a run whose gradient was another one.

    Args:
        run: new or resumed.
        stage: "base" or "v3".

    Raises:
        InputError: an earlier version began the run, with frozen modules or a mask.
    """
    settings = run.saved["settings"][stage] if run.saved else None
    if settings is None or "mask_gradient" in settings["loss"]:
        return
    if settings["freeze"] or settings["loss"]["mask"]:
        raise InputError(
            f"--resume: {run.checkpoint} is of an earlier version, which masked the gradient of "
            "the loss and stopped it at frozen modules, so the run cannot continue as it was. "
            "Start a new run from its weights with --pretrained."
        )
