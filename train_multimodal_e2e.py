"""Train SuperRetina-multimodal end to end: detector, descriptor, geometric and PKE losses, all on
from epoch 1.

    python train_multimodal_e2e.py --epoch 5                                  # built-in data, CPU
    python train_multimodal_e2e.py --data ROOT --mode cffa cfoct --name mine --epoch 150 \\
        --device cuda --batch_size 16
    python train_multimodal_e2e.py --name mine --mode cffa cfoct --resume     # continue a run
    torchrun --nproc_per_node=2 train_multimodal_e2e.py ...                   # several processes

Writes save/<mode>/<name>/: logs, curves, TensorBoard events, checkpoints, and pictures of every
epoch.
"""

from __future__ import annotations

import shlex

import torch

from model.pretrained import load_pretrained
from registration.keypoint_matcher import SuperRetinaMatcher
from registration.trained_matchers import describe_model
from training.arguments import get_parser, resolve_arguments
from training.data import find_roots, prepare_data
from training.processes import make_fabric
from training.real_teaching import make_teaching, state_of, statistics_of
from training.run import train_run
from training.run_config import resolve_config
from training.run_folder import find_run
from training.superretina_step import (
    SuperRetinaConfig,
    SuperRetinaStep,
    add_superretina_arguments,
)
from training.task import TrainingTask
from training.validation import Validator
from utils.errors import run_script

DEFAULT_CONFIG = "configs/superretina_lite.yaml"
DEFAULT_NAME = "e2e"


def main() -> None:
    """Arguments, data, model, objective, validation, engine."""
    parser = get_parser(__doc__, DEFAULT_CONFIG)
    add_superretina_arguments(parser)
    parser.set_defaults(name=DEFAULT_NAME)
    args = parser.parse_args()
    run = find_run(args.save, args.mode, args.name, args.resume)
    resolve_arguments(args, run.saved)
    config = resolve_config(SuperRetinaConfig, args, run, DEFAULT_CONFIG)
    fabric = make_fabric(args.device, args.precision)

    roots = find_roots(args, run)
    data = prepare_data(run, roots, args, config, config.view_draw(), fabric.print)

    torch.manual_seed(config.seed)
    model = config.build_model()
    if args.pretrained:
        fabric.print(load_pretrained(model, args.pretrained))

    matcher = SuperRetinaMatcher(model, config.match, fabric.device)
    validator = Validator(matcher, data.val, data.real_val, config.validation, config.plausibility)
    teaching = make_teaching(data, config, matcher, fabric, run.folder)

    observe = None if teaching is None else teaching.observe
    step = SuperRetinaStep(config, model, data.forms, observe)

    resume = ["--save", args.save, "--mode", *args.mode, "--name", args.name, "--resume"]
    task = TrainingTask(
        model=model,
        dataset=data.train,
        mixture=data.mixture,
        step=step,
        learn=step.learn,
        validation=validator,
        description=describe_model(config.model, config.match, config.plausibility),
        config=data.record,
        validate_every=config.validation.every,
        teaching=teaching,
        extra_state={"value_map": step.value_map} | state_of(teaching),
        statistics=lambda: step.statistics() | statistics_of(teaching),
        resume_hint=shlex.join(["python", "train_multimodal_e2e.py", *resume]),
    )
    train_run(run, task, config, data, fabric, args)


if __name__ == "__main__":
    run_script(main)
