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
from dataclasses import replace

import torch
from lightning_fabric import Fabric

from dataset.generated_pairs import GeneratedPairs
from dataset.split import write_manifest
from model.pretrained import load_pretrained
from model.super_retina_multimodal import SuperRetinaMultimodal
from registration.keypoint_matcher import SuperRetinaMatcher
from registration.trained_matchers import build_model, describe_model
from training.engine import Engine
from training.joint_step import DEFAULT_CONFIG, JointConfig, JointStep
from training.processes import make_fabric
from training.run_folder import find_checkpoint, run_folder, write_run_config
from training.settings import FREE_SETTINGS
from training.setup import (
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
from training.task import TrainingTask
from training.validation import Validator
from utils.checkpoint import read_checkpoint
from utils.config import build, read_yaml, to_plain
from utils.errors import InputError, run_script


def resolve_config(args: argparse.Namespace, saved: dict | None = None) -> JointConfig:
    """The config file with the arguments on top of it; of a resumed run, the checkpoint's config.

    Args:
        saved: ``config`` of the checkpoint that is resumed.

    Raises:
        InputError: unknown keys, impossible values, or arguments that differ from the run that is resumed.
    """
    source = args.config or DEFAULT_CONFIG
    if saved is not None and not args.config:
        config = build(JointConfig, saved["settings"], str(args.resume))
    else:
        config = build(JointConfig, read_yaml(source), source)

    config = replace(
        config,
        train=override_train(config.train, args),
        view=override_view(config.view, args),
        **given(seed=args.seed),
    )
    if saved is not None:
        # Built first, so that settings which the run did not know yet have their defaults.
        before = build(JointConfig, saved["settings"], str(args.resume))
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


def check_config(config: JointConfig, source: str) -> None:
    """Refuse impossible values.

    Raises:
        InputError
    """
    try:
        multiple = build_model(config.model).size_multiple
    except InputError as error:
        raise InputError(f"{source}: {error}") from error
    check_ranges(config, config.train, multiple, source)


def make_task(
    args: argparse.Namespace,
    config: JointConfig,
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
