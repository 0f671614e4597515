"""Train SuperRetina-multimodal end to end: detector, descriptor, geometric and PKE losses, all on from epoch 1.

    python train_multimodal_e2e.py --epoch 5                                   # built-in data, CPU
    python train_multimodal_e2e.py --data ROOT --mode cffa cfoct --name mine --epoch 150 --device cuda --batch_size 16
    python train_multimodal_e2e.py --name mine --mode cffa cfoct --resume      # go on where it stopped, anywhere
    torchrun --nproc_per_node=2 train_multimodal_e2e.py ...                    # several processes

The run is left in save/<mode>/<name>/: logs, curves, TensorBoard events, checkpoints, and pictures for every epoch.
"""

from __future__ import annotations

import argparse
import shlex
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch
from lightning_fabric import Fabric

from dataset.generated_pairs import (
    MODE_FILES,
    DataSettings,
    GeneratedPairs,
    Sample,
    ViewGeometry,
    discover_samples,
    split_by_eye,
    write_manifest,
)
from dataset.real_pairs import RealPair, describe_pairs, load_real_pairs
from loss.joint_objective import JointObjective, ObjectiveSettings
from loss.pke import ValueMap
from model.factory import ModelSettings, build_model, describe_model, load_pretrained
from model.keypoints import extract_keypoints, sample_descriptors
from model.registration import MatchSettings, SuperRetinaMatcher
from model.super_retina_multimodal import SuperRetinaMultimodal
from utils.checkpoint import read_checkpoint
from utils.config import build, read_yaml, to_plain
from utils.device import DEVICES
from utils.engine import (
    FREE_SETTINGS,
    PRECISIONS,
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
from utils.validation import ValidationSettings, Validator

DEFAULT_CONFIG = "configs/superretina_lite.yaml"
DEFAULT_DATA = "data/generated"
# Arguments that define a run besides its settings, with their defaults; they are kept in the checkpoint.
RECORDED_ARGUMENTS = {"val_data": [], "fixed_role": "01", "precision": "32", "overfit": False}


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


def get_args_parser(
    description: str | None = __doc__, default_config: str = DEFAULT_CONFIG
) -> argparse.ArgumentParser:
    """Arguments that all training scripts share; those left out keep the config's value."""
    parser = argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--mode", nargs="+", default=["cffa"], choices=list(MODE_FILES), help="kinds of pairs"
    )
    parser.add_argument("--name", default="e2e", help="name of the run")
    parser.add_argument("--config", help=f"settings (default: {default_config})")
    parser.add_argument(
        "--data", help=f"generated data, see README, 'Your own data' (default: {DEFAULT_DATA})"
    )
    parser.add_argument(
        "--val_data", nargs="+", help="folders of real landmark pairs, validated every epoch"
    )
    parser.add_argument(
        "--fixed_role", choices=("01", "02"), help="fixed image of --val_data (default: 01)"
    )
    parser.add_argument("--save", default="save", help="folder of all runs")
    parser.add_argument("--epoch", type=int, help="number of epochs")
    parser.add_argument("--batch_size", type=int, help="pairs per step, over all processes")
    parser.add_argument(
        "--accumulate", type=int, help="compute a batch in so many parts, to save memory"
    )
    parser.add_argument("--img_size", type=int, help="side of the square training views, pixels")
    parser.add_argument("--lr", type=float, help="largest learning rate")
    parser.add_argument(
        "--rotation", type=float, help="largest rotation of the moving image, degrees; 180 = any"
    )
    parser.add_argument("--views_per_sample", type=int, help="views of each sample per epoch")
    parser.add_argument("--workers", type=int, help="data loading processes")
    parser.add_argument("--seed", type=int, help="of weights, split and views")
    parser.add_argument("--device", default="auto", choices=DEVICES)
    parser.add_argument(
        "--precision",
        choices=list(PRECISIONS),
        help="fp16 scales its loss, and needs a GPU (default: 32)",
    )
    parser.add_argument(
        "--pretrained",
        metavar="FILE",
        help="start from these weights (ours, or published ones; see README)",
    )
    parser.add_argument(
        "--resume",
        nargs="?",
        const="latest",
        metavar="FILE",
        help="continue a run: from its newest good checkpoint, or FILE",
    )
    parser.add_argument(
        "--overfit",
        action="store_true",
        default=None,
        help="train on one batch only, to see that it can learn",
    )
    parser.add_argument("--profile", action="store_true", help="print where the time goes")
    return parser


def resolve_arguments(args: argparse.Namespace, saved: dict | None) -> None:
    """Fill in those arguments of a run that are no settings; a resumed run keeps its own.

    Raises:
        InputError: an argument that differs from the run that is resumed.
    """
    for name, default in RECORDED_ARGUMENTS.items():
        was = saved.get(name, default) if saved else default
        if saved and getattr(args, name) not in (None, was):
            raise InputError(
                f"--resume continues a run as it was, but --{name} was {was}. Leave it out."
            )
        if getattr(args, name) is None:
            setattr(args, name, was)


def given(**values: object) -> dict:
    """The arguments that were given."""
    return {name: value for name, value in values.items() if value is not None}


def override_train(train: TrainSettings, args: argparse.Namespace) -> TrainSettings:
    """Settings of the loop with the arguments on top of them."""
    return replace(
        train,
        **given(
            epochs=args.epoch,
            batch_size=args.batch_size,
            lr=args.lr,
            workers=args.workers,
            accumulate=args.accumulate,
            views_per_sample=args.views_per_sample,
        ),
    )


def override_view(view: ViewGeometry, args: argparse.Namespace) -> ViewGeometry:
    """Settings of the views with the arguments on top of them."""
    return replace(view, **given(img_size=args.img_size, rotation_deg=args.rotation))


def resolve_config(args: argparse.Namespace, saved: dict | None = None) -> Config:
    """The config file with the arguments on top of it; of a resumed run, the checkpoint's config.

    Args:
        saved: ``config`` of the checkpoint that is resumed.

    Raises:
        InputError: unknown keys, impossible values, or arguments that differ from the run that is resumed.
    """
    source = args.config or DEFAULT_CONFIG
    if saved is not None and not args.config:
        config = build(Config, saved["settings"], str(args.resume))
    else:
        config = build(Config, read_yaml(source), source)

    config = replace(
        config,
        train=override_train(config.train, args),
        view=override_view(config.view, args),
        **given(seed=args.seed),
    )
    if saved is not None:
        # Built first, so that settings which the run did not know yet have their defaults.
        before = build(Config, saved["settings"], str(args.resume))
        free = {name: getattr(before.train, name) for name in FREE_SETTINGS}
        changed = differences(
            to_plain(before), to_plain(replace(config, train=replace(config.train, **free)))
        )
        if changed:
            raise InputError(
                f"--resume continues a run as it was, but {'; '.join(changed)}. Leave these arguments out, or start "
                "a new run from its weights with --pretrained."
            )
    check_config(config, source)
    return config


def differences(old: dict, new: dict, where: str = "") -> list[str]:
    """What differs between two nested settings, one line each."""
    lines = []
    for name in new:
        if isinstance(new[name], dict):
            lines += differences(old.get(name, {}), new[name], f"{where}{name}.")
        elif old.get(name) != new[name]:
            lines.append(f"{where}{name} was {old.get(name)} and is now {new[name]}")
    return lines


def check_config(config: Config, source: str) -> None:
    """Refuse impossible values.

    Raises:
        InputError
    """
    try:
        multiple = build_model(config.model).size_multiple
    except InputError as error:
        raise InputError(f"{source}: {error}") from error
    check_ranges(config, config.train, multiple, source)


def check_ranges(config: Config, train: TrainSettings, size_multiple: int, source: str) -> None:
    """Refuse impossible values of what every training script has.

    Raises:
        InputError
    """
    if not config.view.img_size or config.view.img_size < 0 or config.view.img_size % size_multiple:
        raise InputError(
            f"--img_size {config.view.img_size}: must be a multiple of {size_multiple} for this network."
        )
    if (
        min(train.epochs, train.batch_size, train.views_per_sample, config.validation.views) < 1
        or train.workers < 0
    ):
        raise InputError(
            "--epoch, --batch_size, --views_per_sample and validation.views must be at least 1, --workers at "
            "least 0."
        )
    if not (0 < train.lr < float("inf")) or config.seed < 0:
        raise InputError("--lr must be a number above 0, --seed at least 0.")
    if (
        min(*config.view.scale, *config.view.zoom, *config.validation.scale) <= 0
        or config.view.long_side < 32
    ):
        raise InputError(f"{source}: scales and zooms must be above 0, view.long_side at least 32.")
    if not 0 <= config.view.rotation_deg <= 180:
        raise InputError(
            f"--rotation {config.view.rotation_deg:g}: must lie between 0 and 180 degrees."
        )


def find_data(
    root: str, modes: list[str], config: Config, log: Callable[[str], None]
) -> tuple[list[Sample], dict[str, list[str]]]:
    """All samples, and which eyes train, validate and test."""
    samples, lacking = discover_samples(root, modes)
    for line in lacking[:5]:
        log(f"left out: {line}")
    if len(lacking) > 5:
        log(f"left out: {len(lacking) - 5} more samples that lack a file")
    return samples, split_by_eye(
        [sample.eye for sample in samples], config.data.val_test_share, config.seed
    )


def make_data(
    samples: list[Sample], split: dict[str, list[str]], config: Config, sigma: float
) -> tuple[GeneratedPairs, GeneratedPairs]:
    """Training and validation views; ``sigma`` is the width of the junctions in their heatmaps, pixels."""

    def part(name: str) -> list[Sample]:
        return [sample for sample in samples if sample.eye in set(split[name])]

    train = GeneratedPairs(
        part("train"),
        config.view,
        config.data.used_ranges(),
        config.seed,
        sigma,
        config.data.cache_mb,
    )
    checks = config.validation
    whole = ViewGeometry(
        img_size=None,
        long_side=config.match.long_side,
        rotation_deg=checks.rotation_deg,
        scale=checks.scale,
        translation=checks.translation,
        shear=0.0,
        mirror=False,
    )
    # Eye by eye, all modes of each: the first views that a validation takes are of every mode.
    val = sorted(part("val"), key=lambda sample: split["val"].index(sample.eye))
    return train, GeneratedPairs(val, whole, None, checks.seed, sigma, config.data.cache_mb)


def make_objective(config: Config, model: SuperRetinaMultimodal) -> JointObjective:
    """The joint objective, told how to read this network's maps."""
    pke = config.loss.pke
    return JointObjective(
        config.loss,
        sample_descriptors=lambda maps, points: sample_descriptors(
            maps, points, model.descriptor_stride
        ),
        extract_keypoints=lambda maps, allowed: extract_keypoints(
            maps, pke.min_probability, pke.nms_radius_px, pke.max_candidates, allowed, pke.border_px
        ),
    )


class JointStep:
    """One training step: the network and the joint objective.

    Args:
        config: of the run.
        model: the unwrapped network, for its strides.

    Attributes:
        value_map: what the keypoint expansion remembers.
    """

    def __init__(self, config: Config, model: SuperRetinaMultimodal) -> None:
        self.objective, self.value_map = make_objective(config, model), ValueMap(config.loss.pke)

    def __call__(self, network: torch.nn.Module, batch: dict) -> StepOutput:
        """See :class:`utils.engine.TrainingTask`."""
        fixed, moving = network(batch["fixed_image"], batch["moving_image"])
        result = self.objective(fixed, moving, batch, self.value_map)
        return StepOutput(result.losses, result.n_valid, result.counts, result.observations)


def find_real_pairs(args: argparse.Namespace, log: Callable[[str], None]) -> list[RealPair]:
    """Landmark pairs of all folders of ``--val_data``."""
    real: list[RealPair] = []
    for folder in args.val_data:
        pairs = load_real_pairs(folder, Path(folder).resolve().name, fixed_role=args.fixed_role)
        log(describe_pairs(folder, pairs))
        if {pair.key for pair in pairs} & {pair.key for pair in real}:
            raise InputError(
                f"--val_data {folder}: another folder of the same name is given too; rename one."
            )
        real += pairs
    return real


def make_task(
    args: argparse.Namespace,
    config: Config,
    record: dict,
    model: SuperRetinaMultimodal,
    train: GeneratedPairs,
    val: GeneratedPairs,
    fabric: Fabric,
) -> TrainingTask:
    """Compose model, data and objective into what the engine trains; ``record`` is what a resumed run must agree with."""
    step, real = JointStep(config, model), find_real_pairs(args, fabric.print)
    validator = Validator(
        SuperRetinaMatcher(model, config.match, fabric.device),
        val,
        real,
        config.validation,
        config.plausibility,
    )
    return TrainingTask(
        model,
        train,
        step,
        step.value_map.apply,
        validator,
        describe_model(config.model, config.match, config.plausibility),
        record,
        {"value_map": step.value_map},
        step.value_map.statistics,
        shlex.join(
            [
                "python",
                "train_multimodal_e2e.py",
                "--save",
                args.save,
                "--mode",
                *args.mode,
                "--name",
                args.name,
                "--resume",
            ]
        ),
    )


def check_same_data(saved: dict, record: dict, checkpoint: Path) -> None:
    """Refuse to resume on other data: ``files`` holds the size of every sample's files.

    Raises:
        InputError
    """
    before, now = saved.get("files", record["files"]), record["files"]
    changed = sorted(key for key in set(before) | set(now) if before.get(key) != now.get(key))
    if changed or saved["split"] != record["split"] or saved["mode"] != record["mode"]:
        named = f" (for example {', '.join(changed[:3])})" if changed else ""
        raise InputError(
            f"{record['data']}: eyes, files{named} or --mode are not those of the run in {checkpoint}; resume with "
            "the same data, or start a new run from its weights with --pretrained."
        )


def main() -> None:
    """Arguments, data, model, objective, engine."""
    args = get_args_parser().parse_args()
    run_dir = run_folder(args.save, "_".join(args.mode), args.name)
    checkpoint, damage = find_checkpoint(run_dir, args.resume) or (None, "")
    saved = read_checkpoint(checkpoint, ["config"])["config"] if checkpoint else None
    resolve_arguments(args, saved)
    config = resolve_config(args, saved)
    root = args.data or (saved["data"] if saved else DEFAULT_DATA)
    fabric = make_fabric(args.device, args.precision)
    if damage:
        fabric.print(f"damaged checkpoint: {damage}")

    samples, split = find_data(root, args.mode, config, fabric.print)
    record = {
        "settings": to_plain(config),
        "data": str(root),
        "mode": list(args.mode),
        "split": split,
        "files": {sample.key: sample.n_bytes for sample in samples},
    }
    record |= {name: getattr(args, name) for name in RECORDED_ARGUMENTS}
    if saved:
        check_same_data(saved, record, checkpoint)
    train, val = make_data(samples, split, config, config.loss.junction_sigma_px)
    torch.manual_seed(config.seed)
    model = build_model(config.model)
    if args.pretrained:
        fabric.print(load_pretrained(model, args.pretrained))
    task = make_task(args, config, record, model, train, val, fabric)
    engine = Engine(fabric, task, config.train, run_dir, config.seed, args.overfit, args.profile)
    if checkpoint:
        engine.resume(checkpoint)
    if fabric.is_global_zero:
        with engine.folder.writing():
            write_manifest(run_dir / "split.yaml", root, config.seed, split)
            write_run_config(run_dir, {"arguments": vars(args), "settings": to_plain(config)})
        fabric.print(
            f"{len(train)} training samples, {config.train.views_per_sample} views of each per epoch = "
            f"{len(engine.batches)} steps; {sum(p.numel() for p in model.parameters()):,} parameters; device "
            f"{fabric.device}; run folder {run_dir}"
        )
    engine.fit()


if __name__ == "__main__":
    run_script(main)
