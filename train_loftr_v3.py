"""Train LoFTR v3: frozen shared backbone, strict vessel loss; only the transformers learn.

    python train_loftr_v3.py --epoch 2                                              # built-in data, CPU: base, then v3
    python train_loftr_v3.py --stage base --name mine_base                          # the base alone: the whole network
    python train_loftr_v3.py --name mine --pretrained save/cffa/mine_base/best.pth  # v3 on a base that is there
    python train_loftr_v3.py --config configs/loftr_v3.yaml --pretrained minima_loftr.ckpt --data ROOT --device cuda

Without --pretrained, v3 needs a base to freeze, and trains it first (save/<mode>/<name>_base). The run is left in
save/<mode>/<name>/ with the same files and pictures as those of train_multimodal_e2e.py.
"""

from __future__ import annotations

import argparse
import shlex
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import NamedTuple

import torch
from lightning_fabric import Fabric

from dataset.generated_pairs import DataSettings, GeneratedPairs, ViewGeometry, write_manifest
from dataset.real_pairs import RealPair
from dataset.synthesize import write_generated_set
from loss.vessel_matching import VesselLossSettings, VesselObjective, VesselWeights, choose_for_fine
from model.factory import LoFTRSettings, build_model, describe_model, load_pretrained
from model.loftr_matcher import LoFTRMatcher, LoFTRMatchSettings
from model.loftr_vessel import COARSE_STRIDE, HALF_WINDOW_PX, MODULES, LoFTRVessel
from train_multimodal_e2e import (
    DEFAULT_DATA,
    RECORDED_ARGUMENTS,
    check_ranges,
    check_same_data,
    differences,
    find_data,
    find_real_pairs,
    get_args_parser,
    given,
    make_data,
    override_train,
    override_view,
    resolve_arguments,
)
from utils.cells import CellMatches, find_cell_matches, vessel_cells
from utils.checkpoint import read_checkpoint
from utils.config import build, read_yaml, to_plain
from utils.demo import EYES
from utils.engine import (
    FREE_SETTINGS,
    Engine,
    StepOutput,
    TrainingTask,
    TrainSettings,
    find_checkpoint,
    make_fabric,
    run_folder,
    write_run_config,
)
from utils.errors import InputError, run_script
from utils.geometry import Plausibility
from utils.processes import on_first_process
from utils.step_meter import StepMeter
from utils.validation import ValidationSettings, Validator

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
class Config:
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


def get_parser() -> argparse.ArgumentParser:
    """The arguments of all training scripts, and those of this one."""
    parser = get_args_parser(__doc__, DEFAULT_CONFIG)
    parser.set_defaults(name=None)
    parser.add_argument(
        "--stage", choices=STAGES, help="base trains the whole network, v3 (default) freezes a base"
    )
    parser.add_argument(
        "--freeze",
        nargs="+",
        metavar="MODULE",
        help=f"modules that do not train ({', '.join(MODULES)}), or none",
    )
    parser.add_argument(
        "--mask",
        choices=list(MASKS),
        help="strict: vessels only; soft: eps 0.1; none: all that is seen",
    )
    parser.add_argument("--eps", type=float, help="weight of background in the loss")
    parser.add_argument(
        "--photometric",
        action="store_true",
        default=None,
        help="randomise the look of the images too",
    )
    return parser


def resolve_config(args: argparse.Namespace, stage: str, saved: dict | None = None) -> Config:
    """The config file with the arguments on top of it; of a resumed run, the checkpoint's config.

    Args:
        stage: "base" or "v3".
        saved: ``config`` of the checkpoint that is resumed.

    Raises:
        InputError: unknown keys, impossible values, or arguments that differ from the run that is resumed.
    """
    source = args.config or DEFAULT_CONFIG
    if saved is not None and saved["settings"]["stage"] != stage:
        raise InputError(
            f"--resume: that run is of stage {saved['settings']['stage']}, not {stage}; give its --stage, or "
            "start a new run from its weights with --pretrained."
        )
    if saved is not None and not args.config:
        source = str(args.resume or source)
        config = build(Config, saved["settings"], source)
    else:
        config = replace(build(Config, read_yaml(source), source), stage=stage)
    settings = config.now
    if args.mask == "none" and args.eps is not None:
        raise InputError(
            "--eps: without a mask (--mask none) there is no weight of background; leave it out."
        )
    if args.freeze is not None and "none" in args.freeze and len(args.freeze) > 1:
        raise InputError(f"--freeze {' '.join(args.freeze)}: either none or names of modules.")
    loss = replace(settings.loss, **{**MASKS.get(args.mask, {}), **given(eps=args.eps)})
    freeze = None if args.freeze is None else tuple(name for name in args.freeze if name != "none")
    settings = replace(
        settings,
        loss=loss,
        train=override_train(settings.train, args),
        **given(freeze=freeze, photometric=args.photometric),
    )
    config = replace(
        config,
        view=override_view(config.view, args),
        **{config.stage: settings},
        **given(seed=args.seed),
    )
    if saved is not None:
        # Built first, so that settings which the run did not know yet have their defaults.
        before = build(Config, saved["settings"], source)
        free = {name: getattr(before.now.train, name) for name in FREE_SETTINGS}
        as_saved = replace(settings, train=replace(settings.train, **free))
        changed = differences(
            to_plain(before), to_plain(replace(config, **{config.stage: as_saved}))
        )
        if changed:
            raise InputError(
                f"--resume continues a run as it was, but {'; '.join(changed)}. Leave these arguments out, or start "
                "a new run from its weights with --pretrained."
            )
    check_config(config, source)
    return config


def check_config(config: Config, source: str) -> None:
    """Refuse impossible values.

    Raises:
        InputError
    """
    try:
        model = build_model(config.model)
        model.freeze(config.now.freeze)
    except InputError as error:
        raise InputError(f"{source}: {error}") from error
    if config.data.photometric:
        raise InputError(
            f"{source}: data.photometric is a setting of the stages here; set base.photometric or v3.photometric."
        )
    if not any(parameter.requires_grad for parameter in model.parameters()):
        raise InputError(
            "--freeze: nothing is left to train; leave loftr_coarse or loftr_fine out of it."
        )
    check_ranges(config, config.now.train, model.size_multiple, source)


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
        """See :class:`utils.engine.TrainingTask`."""
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


def make_task(
    config: Config,
    record: dict,
    model: LoFTRVessel,
    train: GeneratedPairs,
    val: GeneratedPairs,
    real: list[RealPair],
    fabric: Fabric,
    resume_hint: str,
) -> TrainingTask:
    """Compose model, data and objective into what the engine trains; ``record`` is what a resumed run must agree with."""
    step = VesselStep(model, config.now.loss, fabric.device, fabric.world_size)
    # Turned and smaller copies would cost minutes on a network that knows nothing yet, and validation pairs need none.
    plain = replace(config.match, try_turns=False, smaller_copy=1.0)
    validator = Validator(
        LoFTRMatcher(model, plain, fabric.device), val, real, config.validation, config.plausibility
    )
    return TrainingTask(
        model,
        train,
        step,
        step.end,
        validator,
        describe_model(config.model, config.match, config.plausibility),
        record,
        resume_hint=resume_hint,
    )


def find_or_make_data(args: argparse.Namespace, saved: dict | None, fabric: Fabric) -> str:
    """Root of the generated data; the built-in set is written where it is wanted and missing."""
    root = args.data or (saved["data"] if saved else DEFAULT_DATA)

    def make() -> None:
        if args.data is None and not Path(root).exists():
            fabric.print(f"{root}: not there yet; synthesising {EYES} eyes")
            write_generated_set(Path(root), EYES, processes=2)

    on_first_process(fabric, make)
    return root


def count_parameters(model: torch.nn.Module) -> str:
    """Trainable and total parameters, for the log."""
    total = sum(parameter.numel() for parameter in model.parameters())
    trained = sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
    return f"{trained:,} of {total:,} parameters train ({trained / total:.0%})"


class StageRun(NamedTuple):
    """Where a stage is run, and what it goes on from: the checkpoint and its ``config``, or None for a new run."""

    stage: str
    folder: Path
    checkpoint: Path | None
    saved: dict | None
    damage: str

    @classmethod
    def find(cls, args: argparse.Namespace, stage: str, name: str, resume: str | None) -> StageRun:
        """The run of a stage, as the arguments name it.

        Raises:
            InputError: nothing to resume, or a new run where there is one already.
        """
        folder = run_folder(args.save, "_".join(args.mode), name)
        checkpoint, damage = find_checkpoint(folder, resume) or (None, "")
        return cls(
            stage,
            folder,
            checkpoint,
            read_checkpoint(checkpoint, ["config"])["config"] if checkpoint else None,
            damage,
        )


def run_stage(
    args: argparse.Namespace, run: StageRun, pretrained: str | Path | None, fabric: Fabric
) -> None:
    """Train one stage to its end, or on to its end."""
    if run.damage:
        fabric.print(f"damaged checkpoint: {run.damage}")
    config = resolve_config(args, run.stage, run.saved)
    root = find_or_make_data(args, run.saved, fabric)
    samples, split = find_data(root, args.mode, config, fabric.print)
    record = {
        "settings": to_plain(config),
        "data": str(root),
        "mode": list(args.mode),
        "split": split,
        "files": {sample.key: sample.n_bytes for sample in samples},
    }
    record |= {name: getattr(args, name) for name in RECORDED_ARGUMENTS}
    if run.saved:
        check_same_data(run.saved, record, run.checkpoint)
    # Other views in each stage: v3 would learn little from those that its base has seen.
    config_of_data = replace(
        config,
        data=replace(config.data, photometric=config.now.photometric),
        seed=config.seed + 1000 * STAGES.index(config.stage),
    )
    train, val = make_data(samples, split, config_of_data, JUNCTION_SIGMA_PX)
    torch.manual_seed(config.seed)
    model = build_model(config.model)
    if pretrained and not run.checkpoint:
        fabric.print(load_pretrained(model, pretrained))
    model.freeze(config.now.freeze)
    hint = shlex.join(
        [
            "python",
            "train_loftr_v3.py",
            "--save",
            args.save,
            "--mode",
            *args.mode,
            "--stage",
            config.stage,
            "--name",
            run.folder.name,
            "--resume",
        ]
    )
    task = make_task(
        config, record, model, train, val, find_real_pairs(args, fabric.print), fabric, hint
    )
    engine = Engine(
        fabric, task, config.now.train, run.folder, config.seed, args.overfit, args.profile
    )
    if run.checkpoint:
        engine.resume(run.checkpoint)
    if fabric.is_global_zero:
        with engine.folder.writing():
            write_manifest(run.folder / "split.yaml", root, config.seed, split)
            write_run_config(
                run.folder,
                {
                    "arguments": vars(args),
                    "parameters": count_parameters(model),
                    "settings": to_plain(config),
                },
            )
        fabric.print(
            f"stage {config.stage}: {count_parameters(model)}; frozen: {', '.join(config.now.freeze) or 'nothing'}; "
            f"{len(engine.batches)} steps per epoch; device {fabric.device}; run folder {run.folder}"
        )
    engine.fit()


def find_or_train_base(args: argparse.Namespace, name: str, fabric: Fabric) -> Path:
    """``best.pth`` of the base that v3 freezes: of the run ``name``, which is trained, or resumed, where it is not complete.

    The arguments about freezing, rate and loss are those of v3: the base is trained by its own config.
    """
    folder = run_folder(args.save, "_".join(args.mode), name)
    run = StageRun.find(args, "base", name, "latest" if (folder / "latest.pth").exists() else None)
    if run.checkpoint:
        finished = read_checkpoint(run.checkpoint, ["epoch"])["epoch"]
        if finished >= run.saved["settings"]["base"]["train"]["epochs"]:
            root = args.data or DEFAULT_DATA
            if Path(root).resolve() != Path(run.saved["data"]).resolve():
                raise InputError(
                    f"--data {root}: the base in {folder} was trained on other data ({run.saved['data']}), so "
                    "it may have seen your test eyes. Give another --name, or a base of this data as --pretrained."
                )
            fabric.print(f"base: {folder / 'best.pth'}, trained before")
            return folder / "best.pth"
    fabric.print(f"no --pretrained: training a base first, in {folder}")
    own = argparse.Namespace(
        **vars(args) | {"freeze": None, "mask": None, "eps": None, "lr": None, "photometric": None}
    )
    run_stage(own, run, None, fabric)
    return folder / "best.pth"


def main() -> None:
    """Arguments, then the base where it is wanted or needed, then v3."""
    args = get_parser().parse_args()
    stage = args.stage or "v3"
    name = args.name or ("loftr_v3_base" if stage == "base" else "loftr_v3")
    run = StageRun.find(args, stage, name, args.resume)
    resolve_arguments(args, run.saved)
    fabric = make_fabric(args.device, args.precision)
    pretrained = args.pretrained
    if stage == "v3" and not pretrained and not run.checkpoint:
        pretrained = find_or_train_base(args, f"{name}_base", fabric)
    run_stage(args, run, pretrained, fabric)


if __name__ == "__main__":
    run_script(main)
