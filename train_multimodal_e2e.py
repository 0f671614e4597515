"""Train SuperRetina-multimodal end to end: detector, descriptor, geometric and PKE losses, all on from epoch 1.

    python train_multimodal_e2e.py --epoch 5                                   # built-in data, CPU
    python train_multimodal_e2e.py --data ROOT --mode cffa cfoct --name mine --epoch 150 --device cuda --batch_size 16
    python train_multimodal_e2e.py --name mine --mode cffa cfoct --resume      # go on where it stopped
    torchrun --nproc_per_node=2 train_multimodal_e2e.py ...                    # several processes

The run is left in save/<mode>/<name>/: logs, curves, TensorBoard events, checkpoints, and pictures for every epoch.
"""
from __future__ import annotations

import argparse
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch

from dataset.generated_pairs import (
    MODE_FILES,
    GeneratedPairs,
    Sample,
    ViewGeometry,
    discover_samples,
    split_by_eye,
    write_manifest,
)
from dataset.photometric import PhotometricRanges
from dataset.real_pairs import describe_pairs, load_real_pairs
from loss.joint_objective import JointObjective, ObjectiveSettings
from loss.pke import ValueMap
from model.factory import ModelSettings, build_model, describe_model, load_pretrained
from model.keypoints import extract_keypoints, sample_descriptors
from model.registration import MatchSettings, SuperRetinaMatcher
from model.super_retina_multimodal import SuperRetinaMultimodal
from utils.config import build, read_yaml, to_plain
from utils.device import DEVICES
from utils.engine import (
    PRECISIONS,
    Engine,
    StepOutput,
    TrainingTask,
    TrainSettings,
    make_fabric,
    write_run_config,
)
from utils.errors import InputError, run_script
from utils.geometry import Plausibility
from utils.validation import ValidationSettings, Validator


@dataclass(frozen=True)
class DataSettings:
    """Split and look of the generated data.

    Attributes:
        val_test_share: shares of the eyes for validation and test.
        photometric: switch of the domain randomisation; ranges: its ranges.
        cache_mb: decoded samples kept in memory, per process.
    """

    val_test_share: tuple[float, float] = (0.12, 0.12)
    photometric: bool = True
    ranges: PhotometricRanges = field(default_factory=PhotometricRanges)
    cache_mb: int = 512


@dataclass(frozen=True)
class Config:
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


def get_args_parser() -> argparse.ArgumentParser:
    """Arguments; those left out keep the config's value."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--mode", nargs="+", default=["cffa"], choices=list(MODE_FILES), help="kinds of pairs")
    parser.add_argument("--name", default="e2e", help="name of the run")
    parser.add_argument("--config", default="configs/superretina_lite.yaml")
    parser.add_argument("--data", default="data/generated", help="generated data (README, section 'Your own data')")
    parser.add_argument("--val_data", nargs="+", default=[], help="folders of real landmark pairs, validated every epoch")
    parser.add_argument("--fixed_role", default="01", choices=("01", "02"), help="fixed image of --val_data")
    parser.add_argument("--save", default="save", help="folder of all runs")
    parser.add_argument("--epoch", type=int, help="number of epochs")
    parser.add_argument("--batch_size", type=int, help="pairs per step, over all processes")
    parser.add_argument("--img_size", type=int, help="side of the square training views, pixels")
    parser.add_argument("--lr", type=float, help="largest learning rate")
    parser.add_argument("--rotation", type=float, help="largest rotation of the moving image, degrees; 180 = any")
    parser.add_argument("--workers", type=int, help="data loading processes")
    parser.add_argument("--seed", type=int, help="of weights, split and views")
    parser.add_argument("--device", default="auto", choices=DEVICES)
    parser.add_argument("--precision", default="32", choices=list(PRECISIONS))
    parser.add_argument("--pretrained", metavar="FILE", help="start from these weights (ours, or official SuperRetina)")
    parser.add_argument("--resume", nargs="?", const="latest", metavar="FILE",
                        help="continue a run: its latest.pth, or FILE")
    parser.add_argument("--overfit", action="store_true", help="train on one batch only, to see that it can learn")
    return parser


def resolve_config(args: argparse.Namespace) -> Config:
    """The config file with the arguments on top of it.

    Raises:
        InputError: unknown keys, or impossible values.
    """
    config = build(Config, read_yaml(args.config), args.config)

    def given(**values: object) -> dict:
        return {name: value for name, value in values.items() if value is not None}
    config = replace(
        config,
        train=replace(config.train, **given(epochs=args.epoch, batch_size=args.batch_size, lr=args.lr,
                                            workers=args.workers)),
        view=replace(config.view, **given(img_size=args.img_size, rotation_deg=args.rotation)), **given(seed=args.seed))
    try:
        multiple = build_model(config.model).size_multiple
    except InputError as error:
        raise InputError(f"{args.config}: {error}") from error
    if not config.view.img_size or config.view.img_size < 0 or config.view.img_size % multiple:
        raise InputError(f"--img_size {config.view.img_size}: must be a multiple of {multiple} for this network.")
    if min(config.train.epochs, config.train.batch_size) < 1 or config.train.lr <= 0 or config.train.workers < 0:
        raise InputError("--epoch and --batch_size must be at least 1, --lr above 0, --workers at least 0.")
    if not 0 <= config.view.rotation_deg <= 180:
        raise InputError(f"--rotation {config.view.rotation_deg:g}: must lie between 0 and 180 degrees.")
    return config


def make_data(args: argparse.Namespace, config: Config,
              run_dir: Path | None) -> tuple[GeneratedPairs, GeneratedPairs]:
    """Training and validation views; ``run_dir`` receives the split manifest (None on all processes but the first)."""
    samples, lacking = discover_samples(args.data, args.mode)
    for line in lacking[:5]:
        print(f"left out: {line}")
    if len(lacking) > 5:
        print(f"left out: {len(lacking) - 5} more samples that lack a file")
    split = split_by_eye([sample.eye for sample in samples], config.data.val_test_share, config.seed)
    if run_dir is not None:
        write_manifest(run_dir / "split.yaml", args.data, config.seed, split)

    def part(name: str) -> list[Sample]:
        return [sample for sample in samples if sample.eye in set(split[name])]
    sigma = config.loss.junction_sigma_px
    train = GeneratedPairs(part("train"), config.view, config.data.ranges if config.data.photometric else None,
                           config.seed, sigma, config.data.cache_mb)
    checks = config.validation
    whole = ViewGeometry(img_size=None, long_side=config.match.long_side, rotation_deg=checks.rotation_deg,
                         scale=checks.scale, translation=checks.translation, shear=0.0, mirror=False)
    return train, GeneratedPairs(part("val"), whole, None, checks.seed, sigma, config.data.cache_mb)


def make_objective(config: Config, model: SuperRetinaMultimodal) -> JointObjective:
    """The joint objective, told how to read this network's maps."""
    pke = config.loss.pke
    return JointObjective(
        config.loss,
        sample_descriptors=lambda maps, points: sample_descriptors(maps, points, model.descriptor_stride),
        extract_keypoints=lambda maps, allowed: extract_keypoints(maps, pke.min_probability, pke.nms_radius_px,
                                                                  pke.max_candidates, allowed, pke.border_px))


def make_task(args: argparse.Namespace, config: Config, model: SuperRetinaMultimodal, train: GeneratedPairs,
              val: GeneratedPairs, device: torch.device) -> TrainingTask:
    """Compose model, data and objective into what the engine trains."""
    objective, value_map = make_objective(config, model), ValueMap(config.loss.pke)
    real = []
    for folder in args.val_data:
        pairs = load_real_pairs(folder, Path(folder).name, fixed_role=args.fixed_role)
        print(describe_pairs(folder, pairs))
        if {pair.key for pair in pairs} & {pair.key for pair in real}:
            raise InputError(f"--val_data {folder}: another folder of the same name is given too; rename one.")
        real += pairs

    def step(network: torch.nn.Module, batch: dict) -> StepOutput:
        fixed, moving = network(batch["fixed_image"], batch["moving_image"])
        result = objective(fixed, moving, batch, value_map)
        return StepOutput(result.losses, result.counts, result.observations)

    validator = Validator(SuperRetinaMatcher(model, config.match, device), val, real, config.validation,
                          config.plausibility)
    return TrainingTask(model, train, step, value_map.apply, validator, describe_model(config.model, config.match),
                        to_plain(config), {"value_map": value_map}, value_map.statistics)


def main() -> None:
    """Arguments, data, model, objective, engine."""
    args = get_args_parser().parse_args()
    config = resolve_config(args)
    fabric = make_fabric(args.device, args.precision)
    run_dir = Path(args.save) / "_".join(args.mode) / args.name
    resume_from = run_dir / "latest.pth" if args.resume == "latest" else args.resume and Path(args.resume)
    if resume_from and not resume_from.is_file():
        raise InputError(f"{resume_from}: nothing to resume; check --mode, --name and --save, or leave --resume out.")
    if not resume_from and (run_dir / "latest.pth").exists():
        raise InputError(f"{run_dir}: already holds a run; continue it with --resume, or choose another --name.")

    train, val = make_data(args, config, run_dir if fabric.is_global_zero else None)
    torch.manual_seed(config.seed)
    model = build_model(config.model)
    if args.pretrained:
        print(load_pretrained(model, args.pretrained))
    task = make_task(args, config, model, train, val, fabric.device)
    engine = Engine(fabric, task, config.train, run_dir, config.seed, args.overfit)
    if resume_from:
        engine.resume(resume_from)
    if fabric.is_global_zero:
        write_run_config(run_dir, {"arguments": vars(args), "config": to_plain(config)})
        print(f"{len(train)} training samples, {sum(p.numel() for p in model.parameters()):,} parameters, "
              f"device {fabric.device}, run folder {run_dir}")
    engine.fit()


if __name__ == "__main__":
    run_script(main)
