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
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import torch
from lightning_fabric import Fabric

from dataset.generated_pairs import GeneratedPairs
from dataset.real_pairs import RealPair
from dataset.split import write_manifest
from model.loftr_vessel import MODULES, LoFTRVessel
from model.pretrained import load_pretrained
from registration.loftr_matcher import LoFTRMatcher
from registration.trained_matchers import build_model, describe_model
from synthesis.generated_set import DEFAULT_EYES, write_generated_set
from training.engine import Engine
from training.processes import make_fabric, on_first_process
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
from training.vessel_step import (
    DEFAULT_CONFIG,
    JUNCTION_SIGMA_PX,
    MASKS,
    STAGES,
    LoFTRConfig,
    VesselStep,
    count_parameters,
)
from utils.checkpoint import read_checkpoint
from utils.config import build, read_yaml, to_plain
from utils.errors import InputError, run_script


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


def resolve_config(args: argparse.Namespace, stage: str, saved: dict | None = None) -> LoFTRConfig:
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
        config = build(LoFTRConfig, saved["settings"], source)
    else:
        config = replace(build(LoFTRConfig, read_yaml(source), source), stage=stage)
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
        before = build(LoFTRConfig, saved["settings"], source)
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


def check_config(config: LoFTRConfig, source: str) -> None:
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


def make_task(
    config: LoFTRConfig,
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
            fabric.print(f"{root}: not there yet; synthesising {DEFAULT_EYES} eyes")
            write_generated_set(Path(root), DEFAULT_EYES, processes=2)

    on_first_process(fabric, make)
    return root


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
