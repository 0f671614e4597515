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
from dataclasses import dataclass, field, replace
from pathlib import Path

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
    check_ranges,
    differences,
    find_checkpoint,
    find_data,
    find_real_pairs,
    get_args_parser,
    given,
    make_data,
    override_train,
    override_view,
)
from utils.cells import CellMatches, find_cell_matches, vessel_cells
from utils.checkpoint import read_checkpoint
from utils.config import build, read_yaml, to_plain
from utils.demo import EYES
from utils.engine import Engine, StepOutput, TrainingTask, TrainSettings, make_fabric, write_run_config
from utils.errors import InputError, run_script
from utils.geometry import Plausibility
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
    v3: StageSettings = field(default_factory=lambda: StageSettings(freeze=("backbone", "pos_encoding", "fine_preprocess")))
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
    parser.add_argument("--stage", choices=STAGES, help="base trains the whole network, v3 (default) freezes a base")
    parser.add_argument("--freeze", nargs="+", metavar="MODULE",
                        help=f"modules that do not train ({', '.join(MODULES)}), or none")
    parser.add_argument("--mask", choices=list(MASKS), help="strict: vessels only; soft: eps 0.1; none: all that is seen")
    parser.add_argument("--eps", type=float, help="weight of background in the loss")
    parser.add_argument("--photometric", action="store_true", default=None, help="randomise the look of the images too")
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
    if saved is not None and not args.config:
        source = str(args.resume or source)
        config = build(Config, saved["settings"], source)
    else:
        config = replace(build(Config, read_yaml(source), source), stage=stage)
    settings = config.now
    loss = replace(settings.loss, **MASKS.get(args.mask, {}), **given(eps=args.eps))
    freeze = None if args.freeze is None else tuple(name for name in args.freeze if name != "none")
    settings = replace(settings, loss=loss, train=override_train(settings.train, args),
                       **given(freeze=freeze, photometric=args.photometric))
    config = replace(config, view=override_view(config.view, args), **{config.stage: settings}, **given(seed=args.seed))
    if saved is not None:
        workers = saved["settings"][config.stage]["train"]["workers"]
        as_saved = replace(settings, train=replace(settings.train, workers=workers))
        changed = differences(saved["settings"], to_plain(replace(config, **{config.stage: as_saved})))
        if changed:
            raise InputError(f"--resume continues a run as it was, but {'; '.join(changed)}. Leave these arguments out, or start "
                             "a new run from its weights with --pretrained.")
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
    if not any(parameter.requires_grad for parameter in model.parameters()):
        raise InputError("--freeze: nothing is left to train; leave loftr_coarse or loftr_fine out of it.")
    check_ranges(config, config.now.train, model.size_multiple, source)


class VesselStep:
    """One training step: supervision from the known transform, the network, the loss.

    Args:
        model: the unwrapped network, for its grid.
        settings: of the loss.
        device: where it runs.
    """

    def __init__(self, model: LoFTRVessel, settings: VesselLossSettings, device: torch.device) -> None:
        self.settings = settings
        self.cell_offset_px = model.cell_offset_px
        self.objective = VesselObjective(settings, HALF_WINDOW_PX)
        self.meter = StepMeter(device)

    def __call__(self, network: torch.nn.Module, batch: dict) -> StepOutput:
        """See :class:`utils.engine.TrainingTask`."""
        cost_of_the_last = dict(self.meter.last)
        self.meter.start()
        matches = find_cell_matches(batch["H_fix_to_mov"], batch["fixed_fov"], batch["moving_fov"], COARSE_STRIDE,
                                    self.cell_offset_px)
        vessels = [vessel_cells(batch[f"{role}_mask"], COARSE_STRIDE, self.settings.min_vessel_area)
                   for role in ("fixed", "moving")]
        weights = self.objective.weights(*vessels)
        asked = choose_for_fine(matches, weights, self.settings.fine_matches * len(batch["key"]))
        features = network(batch["fixed_image"], batch["moving_image"], asked)
        terms = self.objective(*features, matches, asked, weights)
        losses = {name: term.mean() for name, term in terms.items()}
        losses["total"] = self.objective.total(losses)
        counts = {f"empty_{name}": float(term.n_empty()) for name, term in terms.items()} | cost_of_the_last
        on_vessels = matches.pick(VesselWeights(*vessels, 0.0).on_vessel(matches))
        counts |= {"vessel_matches": float(len(on_vessels.batch))} | coarse_accuracy(features.similarity, on_vessels)
        return StepOutput(losses, {name: int(term.valid.sum()) for name, term in terms.items()}, counts, [])

    def end(self, observations: list) -> None:
        """The optimizer has taken its step."""
        self.meter.stop()


@torch.no_grad()
def coarse_accuracy(similarity: torch.Tensor, matches: CellMatches) -> dict[str, float]:
    """Share of fixed cells whose most similar moving cell is the right one; nothing when there is no cell."""
    if len(matches.batch) == 0:
        return {}
    best = similarity[matches.batch, matches.fixed_cell].argmax(dim=1)
    return {"coarse_accuracy": float((best == matches.moving_cell).float().mean())}


def make_task(config: Config, record: dict, model: LoFTRVessel, train: GeneratedPairs, val: GeneratedPairs,
              real: list[RealPair], fabric: Fabric) -> TrainingTask:
    """Compose model, data and objective into what the engine trains; ``record`` is what a resumed run must agree with."""
    step = VesselStep(model, config.now.loss, fabric.device)
    validator = Validator(LoFTRMatcher(model, config.match, fabric.device), val, real, config.validation, config.plausibility)
    return TrainingTask(model, train, step, step.end, validator,
                        describe_model(config.model, config.match, config.plausibility), record)


def find_or_make_data(args: argparse.Namespace, saved: dict | None, fabric: Fabric) -> str:
    """Root of the generated data; the built-in set is written where it is wanted and missing."""
    root = args.data or (saved["data"] if saved else DEFAULT_DATA)
    if args.data is None and not Path(root).exists() and fabric.is_global_zero:
        fabric.print(f"{root}: not there yet; synthesising {EYES} eyes")
        write_generated_set(Path(root), EYES, processes=2)
    fabric.barrier()
    return root


def count_parameters(model: torch.nn.Module) -> str:
    """Trainable and total parameters, for the log."""
    total = sum(parameter.numel() for parameter in model.parameters())
    trained = sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
    return f"{trained:,} of {total:,} parameters train ({trained / total:.0%})"


def run_stage(args: argparse.Namespace, stage: str, name: str, pretrained: str | Path | None, fabric: Fabric) -> Path:
    """Train one stage to its end. Returns the run's folder."""
    run_dir = Path(args.save) / "_".join(args.mode) / name
    checkpoint = find_checkpoint(args, run_dir)
    saved = read_checkpoint(checkpoint, ["config"])["config"] if checkpoint else None
    config = resolve_config(args, stage, saved)
    root = find_or_make_data(args, saved, fabric)
    samples, split = find_data(root, args.mode, config, fabric.print)
    if saved and (saved["split"] != split or saved["mode"] != args.mode):
        raise InputError(f"{root}: eyes or --mode are not those of the run in {checkpoint}; resume with the same data, or "
                         "start a new run from its weights with --pretrained.")
    config_of_data = replace(config, data=replace(config.data, photometric=config.now.photometric))
    train, val = make_data(samples, split, config_of_data, JUNCTION_SIGMA_PX)
    torch.manual_seed(config.seed)
    model = build_model(config.model)
    if pretrained and not checkpoint:
        fabric.print(load_pretrained(model, pretrained))
    model.freeze(config.now.freeze)
    record = {"settings": to_plain(config), "data": str(root), "mode": list(args.mode), "split": split}
    task = make_task(config, record, model, train, val, find_real_pairs(args, fabric.print), fabric)
    engine = Engine(fabric, task, config.now.train, run_dir, config.seed, args.overfit)
    if checkpoint:
        engine.resume(checkpoint)
    if fabric.is_global_zero:
        write_manifest(run_dir / "split.yaml", root, config.seed, split)
        write_run_config(run_dir, {"arguments": vars(args), "parameters": count_parameters(model), "settings": to_plain(config)})
        fabric.print(f"stage {config.stage}: {count_parameters(model)}; frozen: {', '.join(config.now.freeze) or 'nothing'}; "
                     f"{len(engine.batches)} steps per epoch; device {fabric.device}; run folder {run_dir}")
    engine.fit()
    return run_dir


def find_or_train_base(args: argparse.Namespace, name: str, fabric: Fabric) -> Path:
    """``best.pth`` of the base that v3 freezes: of the run ``name``, which is trained, or resumed, where it is not complete.

    The arguments about freezing and the loss are those of v3: the base is trained by its own config.
    """
    run_dir = Path(args.save) / "_".join(args.mode) / name
    latest = run_dir / "latest.pth"
    own = argparse.Namespace(**vars(args) | {"freeze": None, "mask": None, "eps": None, "lr": None, "photometric": None})
    if latest.exists():
        content = read_checkpoint(latest, ["epoch", "config"])
        if content["epoch"] >= content["config"]["settings"]["base"]["train"]["epochs"]:
            fabric.print(f"base: {run_dir / 'best.pth'}, trained before")
            return run_dir / "best.pth"
        own = argparse.Namespace(**vars(own) | {"resume": str(latest)})
    fabric.print(f"no --pretrained: training a base first, in {run_dir}")
    return run_stage(own, "base", name, None, fabric) / "best.pth"


def main() -> None:
    """Arguments, then the base where it is wanted or needed, then v3."""
    args = get_parser().parse_args()
    stage = args.stage or "v3"
    name = args.name or ("loftr_v3_base" if stage == "base" else "loftr_v3")
    fabric = make_fabric(args.device, args.precision)
    pretrained = args.pretrained
    if stage == "v3" and not pretrained and not args.resume:
        find_checkpoint(args, Path(args.save) / "_".join(args.mode) / name)
        pretrained = find_or_train_base(args, f"{name}_base", fabric)
    run_stage(args, stage, name, pretrained, fabric)


if __name__ == "__main__":
    run_script(main)
