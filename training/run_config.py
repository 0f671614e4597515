"""The settings of a training run, and how a new or a resumed run gets them."""

from __future__ import annotations

import argparse
from abc import ABC, abstractmethod
from dataclasses import dataclass, field, replace
from typing import Any, Self, TypeVar

from dataset.aligned_pairs import FREE_SETTINGS, DataSettings
from dataset.views import ViewGeometry
from geometry.estimation import Plausibility
from registration.matcher import MatchSettings
from training.loop_settings import OPEN_ENDED, TrainSettings
from training.real_settings import RealSettings
from training.run_folder import Run
from training.validation import ValidationSettings
from utils.assignments import with_assignments
from utils.config import build, merge_settings, read_config, to_plain
from utils.errors import InputError

ConfigT = TypeVar("ConfigT", bound="RunConfig")
# Of the images that views are cut from; smaller ones have no vessels left.
MIN_VIEW_LONG_SIDE_PX = 32
MAX_ROTATION_DEG = 180.0


@dataclass(frozen=True)
class RunConfig(ABC):
    """Settings that every training run has; each training script adds its own in a subclass.

    The YAML files in configs/ have the same structure. Keys that a file leaves out keep their
    defaults.

    Attributes:
        match: how the validation, and later users of the checkpoint, match images.
        plausibility: limits on the transforms of the validation pairs.
        data: split and appearance of the generated data.
        view: geometry of the training views.
        validation: how the run is validated.
        real: how real images teach.
        seed: of the weights and the views; non-negative.
    """

    match: MatchSettings = field(default_factory=MatchSettings)
    plausibility: Plausibility = field(default_factory=Plausibility)
    data: DataSettings = field(default_factory=DataSettings)
    view: ViewGeometry = field(default_factory=ViewGeometry)
    validation: ValidationSettings = field(default_factory=ValidationSettings)
    real: RealSettings = field(default_factory=RealSettings)
    seed: int = 0

    @property
    @abstractmethod
    def loop(self) -> TrainSettings:
        """Settings of the training loop."""

    @abstractmethod
    def with_loop(self, loop: TrainSettings) -> Self:
        """The same config with other settings of the loop."""

    @abstractmethod
    def size_multiple(self) -> int:
        """Divisor of the sides of the views, pixels, after checks of the model's own settings.

        Raises:
            InputError: impossible settings of the model.
        """

    def overridden(self, args: argparse.Namespace) -> Self:
        """The config with the command-line arguments on top of it.

        Args:
            args: parsed by :func:`training.arguments.get_parser`; None means "not given".
        """
        loop = replace(
            self.loop,
            **given(
                epochs=args.epoch,
                batch_size=args.batch_size,
                lr=args.lr,
                workers=args.workers,
                accumulate=args.accumulate,
                views_per_sample=args.views_per_sample,
            ),
        )
        view = replace(self.view, **given(img_size=args.img_size, rotation_deg=args.rotation))
        data = replace(self.data, **given(split_seed=args.split_seed, fold=args.fold))
        validation = replace(self.validation, **given(every=args.val_every))
        forms = None if args.real_forms is None else tuple(args.real_forms)
        real = replace(self.real, **given(share=args.real_share, forms=forms))
        config = replace(
            self.with_loop(loop), view=view, data=data, validation=validation, real=real
        )
        return replace(config, **given(seed=args.seed))

    def check(self, source: str) -> None:
        """Refuse impossible values.

        Args:
            source: the config file or checkpoint, named in messages.

        Raises:
            InputError: a value outside its range; the message names the argument or the key.
        """
        loop, view, validation = self.loop, self.view, self.validation
        try:
            multiple = self.size_multiple()
        except InputError as error:
            raise InputError(f"{source}: {error}") from error
        if not view.img_size or view.img_size < 0 or view.img_size % multiple:
            raise InputError(
                f"--img_size {view.img_size}: must be a multiple of {multiple} for this network."
            )
        counts = (loop.epochs, loop.batch_size, loop.views_per_sample)
        if min(counts) < 1 or (loop.workers or 0) < 0:
            raise InputError(
                "--epoch, --batch_size and --views_per_sample must be at least 1, --workers at "
                "least 0."
            )
        if not (0 < loop.lr < float("inf")) or self.seed < 0:
            raise InputError("--lr must be a number above 0, --seed at least 0.")
        if (
            min(*view.scale, *view.zoom, *validation.scale) <= 0
            or view.long_side < MIN_VIEW_LONG_SIDE_PX
        ):
            raise InputError(
                f"{source}: scales and zooms must be above 0, view.long_side at least "
                f"{MIN_VIEW_LONG_SIDE_PX}."
            )
        if not 0 <= view.rotation_deg <= MAX_ROTATION_DEG:
            raise InputError(
                f"--rotation {view.rotation_deg:g}: must lie between 0 and 180 degrees."
            )


def given(**values: Any) -> dict[str, Any]:
    """The arguments that were given on the command line: those that are not None."""
    return {name: value for name, value in values.items() if value is not None}


def resolve_config(
    config_type: type[ConfigT],
    args: argparse.Namespace,
    run: Run,
    default_file: str,
    **fixed: Any,
) -> ConfigT:
    """The config of a run: file or checkpoint, then ``--set``, then the named arguments.

    A new run takes ``--config`` or the default file. A resumed run takes the settings of its
    checkpoint and must not differ from them, except in ``TrainSettings.free_settings`` and in
    ``dataset.aligned_pairs.FREE_SETTINGS``.

    Args:
        config_type: the script's subclass of :class:`RunConfig`.
        args: parsed by :func:`training.arguments.get_parser`; None means "not given".
        run: new, or resumed: then its checkpoint holds the settings.
        default_file: config file of a new run without ``--config``.
        **fixed: fields that no file decides, such as the stage of LoFTR v3.

    Raises:
        InputError: unknown keys, impossible values, or a difference from the resumed run.
    """
    source = str(args.config or run.checkpoint or default_file)
    before = None
    if run.saved is not None:
        # Settings that an earlier version did not have get their defaults here.
        settings = with_split_seed(run.saved["settings"])
        before = build(config_type, settings, str(run.checkpoint), from_checkpoint=True)
    if before is None or args.config:
        content = read_config(source)
        if run.saved is not None and not _has_split_seed(run.saved["settings"]):
            content = with_split_seed(content, run.saved["settings"]["seed"])
        start = replace(build(config_type, content, source), **fixed)
    else:
        start = before
    resolved = with_assignments(start, args.set, list(fixed)).overridden(args)
    if before is not None:
        _refuse_changes(before, resolved)
    resolved.check(source)
    return resolved


def with_split_seed(settings: dict[str, Any], seed: int | None = None) -> dict[str, Any]:
    """Settings with the seed of their split, which was that of the run in earlier versions.

    Args:
        settings: of a checkpoint or a config file.
        seed: of the run; None takes it from the settings.
    """
    if _has_split_seed(settings):
        return settings
    seed = settings.get("seed", 0) if seed is None else seed
    return merge_settings(settings, {"data": {"split_seed": seed}})


def _has_split_seed(settings: dict[str, Any]) -> bool:
    data = settings.get("data")
    return isinstance(data, dict) and "split_seed" in data


def _refuse_changes(before: RunConfig, resolved: RunConfig) -> None:
    loop = before.loop
    free = {name: getattr(loop, name) for name in loop.free_settings()}
    as_saved = resolved.with_loop(replace(resolved.loop, **free))
    kept = {name: getattr(before.data, name) for name in FREE_SETTINGS}
    as_saved = replace(as_saved, data=replace(as_saved.data, **kept))
    changed = differences(to_plain(before), to_plain(as_saved))
    why = ""
    if as_saved.loop.epochs != loop.epochs:
        why = (
            f" The schedule {loop.schedule} lowers the learning rate to 0 at epoch {loop.epochs}, "
            "so with another number of epochs the past ones would have had other rates; only a run "
            f"with train.schedule {OPEN_ENDED} can be continued with more epochs."
        )
    if changed:
        raise InputError(
            f"--resume continues a run as it was, but {'; '.join(changed)}.{why} Leave these "
            "arguments out, or start a new run from its weights with --pretrained."
        )


def differences(old: dict[str, Any], new: dict[str, Any], where: str = "") -> list[str]:
    """Settings that differ, one line each.

    Args:
        old, new: nested settings, as ``utils.config.to_plain`` returns them.
        where: prefix of the names in the lines, ending in a dot.
    """
    lines = []
    for name in dict.fromkeys([*old, *new]):
        before, after = old.get(name), new.get(name)
        if isinstance(before, dict) or isinstance(after, dict):
            lines += differences(before or {}, after or {}, f"{where}{name}.")
        elif before != after:
            lines.append(f"{where}{name} was {before} and is now {after}")
    return lines
