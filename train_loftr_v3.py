"""Train LoFTR v3: frozen shared backbone, strict vessel loss; only the transformers train.

    python train_loftr_v3.py --epoch 2                        # built-in data, CPU: base, then v3
    python train_loftr_v3.py --stage base --name mine_base    # the base alone: the whole network
    python train_loftr_v3.py --name mine --pretrained save/cffa/mine_base/best.pth
    python train_loftr_v3.py --config configs/loftr_v3.yaml --pretrained minima_loftr.ckpt \\
        --data ROOT --device cuda

v3 freezes a trained base. Without --pretrained the base is trained first, as run <name>_base.
Writes save/<mode>/<name>/ with the same files and pictures as train_multimodal_e2e.py.
"""

from __future__ import annotations

import argparse
import shlex
from pathlib import Path

import torch
from lightning_fabric import Fabric

from model.pretrained import load_pretrained
from registration.loftr_matcher import LoFTRMatcher
from registration.trained_matchers import describe_model
from synthesis.generated_set import DEFAULT_EYES, write_generated_set
from training.arguments import DEFAULT_DATA, get_parser, resolve_arguments
from training.data import find_roots, prepare_data, refuse_other_data
from training.loftr_config import LoFTRConfig, add_loftr_arguments, check_gradient
from training.loftr_step import LoFTRStep
from training.loop_settings import TrainSettings
from training.processes import make_fabric, on_first_process
from training.real_teaching import make_teaching, state_of, statistics_of
from training.run import train_run
from training.run_config import resolve_config
from training.run_folder import Run, find_run
from training.run_state import why_complete
from training.task import TrainingTask
from training.validation import Validator
from utils.checkpoint import read_checkpoint
from utils.config import build
from utils.errors import InputError, run_script

DEFAULT_CONFIG = "configs/loftr_v3_lite.yaml"
DEFAULT_NAMES = {"base": "loftr_v3_base", "v3": "loftr_v3"}


def main() -> None:
    """Arguments; the base where it is wanted or needed; then v3."""
    parser = get_parser(__doc__, DEFAULT_CONFIG)
    add_loftr_arguments(parser)
    args = parser.parse_args()
    stage = args.stage or "v3"
    args.name = args.name or DEFAULT_NAMES[stage]
    run = find_run(args.save, args.mode, args.name, args.resume)
    resolve_arguments(args, run.saved)
    fabric = make_fabric(args.device, args.precision)
    pretrained = args.pretrained
    if stage == "v3" and not pretrained and run.checkpoint is None:
        pretrained = find_or_train_base(args, f"{args.name}_base", fabric)
    train_stage(args, run, stage, pretrained, fabric)


def train_stage(
    args: argparse.Namespace, run: Run, stage: str, pretrained: str | Path | None, fabric: Fabric
) -> None:
    """Train one stage: data, model, objective, validation, engine.

    Args:
        args: parsed arguments.
        run: new or resumed.
        stage: "base" or "v3".
        pretrained: checkpoint that a new run starts from; None starts from random weights.
        fabric: devices and processes.
    """
    check_stage(run, stage)
    check_gradient(run, stage)
    config = resolve_config(LoFTRConfig, args, run, DEFAULT_CONFIG, stage=stage)
    roots = find_or_make_data(args, run, fabric)
    data = prepare_data(run, roots, args, config, config.view_draw(), fabric.print)

    torch.manual_seed(config.seed)
    model = config.build_model()
    if pretrained and run.checkpoint is None:
        fabric.print(load_pretrained(model, pretrained))
    model.freeze(config.current.freeze)
    fabric.print(f"stage {stage}; frozen: {', '.join(config.current.freeze) or 'nothing'}")

    step = LoFTRStep(model, config.current.loss, fabric.device, fabric.world_size, data.forms)

    matcher = LoFTRMatcher(model, config.match, fabric.device)
    validator = Validator(matcher, data.val, data.real_val, config.validation, config.plausibility)
    teaching = make_teaching(data, config, matcher, fabric, run.folder)

    resume = ["--save", args.save, "--mode", *args.mode, "--stage", stage, "--name"]
    task = TrainingTask(
        model=model,
        dataset=data.train,
        mixture=data.mixture,
        step=step,
        learn=step.end,
        validation=validator,
        description=describe_model(config.model, config.match, config.plausibility),
        config=data.record,
        validate_every=config.validation.every,
        teaching=teaching,
        extra_state=state_of(teaching),
        statistics=lambda: statistics_of(teaching),
        resume_hint=shlex.join(
            ["python", "train_loftr_v3.py", *resume, run.folder.name, "--resume"]
        ),
    )
    train_run(run, task, config, data, fabric, args)


def check_stage(run: Run, stage: str) -> None:
    """Refuse to resume a run of another stage.

    Args:
        run: new or resumed.
        stage: "base" or "v3".

    Raises:
        InputError: the run to resume is of another stage.
    """
    was = run.saved["settings"]["stage"] if run.saved else stage
    if was != stage:
        raise InputError(
            f"--resume: that run is of stage {was}, not {stage}; give its --stage, or start a new "
            "run from its weights with --pretrained."
        )


def find_or_make_data(args: argparse.Namespace, run: Run, fabric: Fabric) -> list[str]:
    """Folders of the generated data; the built-in set is written if it is wanted and missing.

    Args:
        args: parsed arguments.
        run: a resumed run keeps the folders of its checkpoint.
        fabric: the first process writes.
    """
    roots = find_roots(args, run)

    def make() -> None:
        if args.data is None and roots == [DEFAULT_DATA] and not Path(DEFAULT_DATA).exists():
            fabric.print(f"{DEFAULT_DATA}: not there yet; synthesising {DEFAULT_EYES} eyes")
            write_generated_set(Path(DEFAULT_DATA), DEFAULT_EYES, processes=2)

    on_first_process(fabric, make)
    return roots


def find_or_train_base(args: argparse.Namespace, name: str, fabric: Fabric) -> Path:
    """``best.pth`` of the base that v3 freezes; trained or resumed first if it is not complete.

    The arguments about freezing, learning rate and loss are those of v3: the base uses its config.

    Args:
        args: parsed arguments.
        name: of the run of the base.
        fabric: devices and processes.

    Raises:
        InputError: a base of other data or of another split, or as :func:`train_stage`.
    """
    best = Path(args.save) / "_".join(args.mode) / name / "best.pth"
    resume = "latest" if best.with_name("latest.pth").exists() else None
    run = find_run(args.save, args.mode, name, resume)
    if run.checkpoint is not None and run.saved is not None:
        config = resolve_config(LoFTRConfig, args, Run(run.folder), DEFAULT_CONFIG, stage="v3")
        refuse_other_data(run, args, config)
        loop = run.saved["settings"]["base"]["train"]
        loop = build(TrainSettings, loop, str(run.checkpoint), from_checkpoint=True)
        if why_complete(read_checkpoint(run.checkpoint, ["epoch"]), loop):
            fabric.print(f"base: {best}, trained before")
            return best
    fabric.print(f"no --pretrained: training a base first, in {run.folder}")
    own = dict.fromkeys(["freeze", "mask", "eps", "mask_gradient", "lr", "photometric"])
    train_stage(argparse.Namespace(**vars(args) | own | {"name": name}), run, "base", None, fabric)
    return best


if __name__ == "__main__":
    run_script(main)
