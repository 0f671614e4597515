"""Hostile files and names: nothing is executed, nothing is unpacked, nothing leaves its folder."""

from __future__ import annotations

import os
import pickle
import resource
import zipfile
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from helpers import run_main

import register
import train_multimodal_e2e
from batch.ledger import refused_rows
from registration.pair_tables import PairToRegister
from training.run_folder import run_folder
from training.superretina_step import SuperRetinaConfig
from utils import stored_image
from utils.checkpoint import read_checkpoint, save_checkpoint
from utils.config import build, read_yaml
from utils.errors import InputError
from utils.image_files import read_gray, read_mask

# --- security -------------------------------------------------------------------------------------


class Malicious:
    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self):
        return os.system, (f"touch {self.marker}",)


@pytest.mark.parametrize("kind", ["zip", "legacy", "pickle"])
def test_a_checkpoint_cannot_execute_anything(
    tmp_path, monkeypatch, capsys, kind, tiny_data, tiny_config, untrained_weights
):
    marker, path = tmp_path / "executed", tmp_path / "evil.pth"
    content = torch.load(untrained_weights, weights_only=True) | {
        "config": Malicious(marker),
        "extra": {},
    }
    if kind == "pickle":
        path.write_bytes(pickle.dumps(content))
    else:
        torch.save(content, path, _use_new_zipfile_serialization=kind == "zip")
    for script, arguments in (
        (register, ("a.png", "b.png", "--out", tmp_path / "out", "--weights", path)),
        (
            train_multimodal_e2e,
            (
                *(
                    f"--config {tiny_config} --data {tiny_data} --save "
                    f"{tmp_path / 's'} --resume {path}"
                ).split(),
            ),
        ),
        (
            train_multimodal_e2e,
            (
                *(
                    f"--config {tiny_config} --data {tiny_data} --save "
                    f"{tmp_path / 's'} --pretrained {path}"
                ).split(),
            ),
        ),
    ):
        assert run_main(script, monkeypatch, *arguments) == 2
        message = capsys.readouterr().err
        assert "evil.pth: damaged, or holds more than tensors and plain values" in message
    assert not marker.exists()
    # An ordinary load of the same file executes the command.
    if kind == "pickle":
        pickle.loads(path.read_bytes())
        assert marker.exists()


def test_compressed_and_oversized_checkpoints_are_refused(tmp_path, untrained_weights):
    bomb = tmp_path / "bomb.pth"
    with (
        zipfile.ZipFile(untrained_weights) as source,
        zipfile.ZipFile(bomb, "w", zipfile.ZIP_DEFLATED) as target,
    ):
        for name in source.namelist():
            target.writestr(name, source.read(name))
    with pytest.raises(InputError, match="bomb.pth.*compressed"):
        read_checkpoint(bomb)
    content = torch.load(untrained_weights, weights_only=True)
    content["model_settings"]["widths"] = [8, 8, 2**30]
    save_checkpoint(bomb, content)
    with pytest.raises(InputError, match="none above 1024"):
        register.Registrar(bomb, device="cpu")


def test_yaml_is_loaded_safely(tmp_path):
    marker, path = tmp_path / "executed", tmp_path / "evil.yaml"
    path.write_text(
        f"model: !!python/object/apply:os.system ['touch {marker}']\n", encoding="utf-8"
    )
    with pytest.raises(InputError, match="evil.yaml.*YAML"):
        read_yaml(path)
    assert not marker.exists()
    # Nested aliases (a "billion laughs" file): small to parse, gigabytes to print.
    laughs = "".join(
        f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 10) if n else 'ha'}]\n" for n in range(12)
    )
    path.write_text(laughs + "train: {lr: *a11}\n", encoding="utf-8")
    content = read_yaml(path)
    with pytest.raises(InputError, match="train: lr") as caught:
        build(SuperRetinaConfig, {"train": content["train"]}, str(path))
    assert len(str(caught.value)) < 2000


@pytest.mark.parametrize(
    "name", ["../../x", "/etc/x", "..", "a/b", "a\\b", "", ".hidden", "x\x00y"]
)
def test_names_cannot_lead_out_of_the_output_folder(
    tmp_path, name, untrained_weights, monkeypatch, capsys, numbered_root
):
    with pytest.raises(InputError, match="plain name"):
        run_folder(tmp_path, "cffa", name)
    row = PairToRegister(name, "a.png", "b.png", {})
    before = sorted(tmp_path.rglob("*"))
    reasons = refused_rows([row], tmp_path / "out")
    assert "plain name" in reasons[0] and sorted(tmp_path.rglob("*")) == before
    import evaluate

    options = f"--real {numbered_root[0]} --weights {untrained_weights} --out {tmp_path / 'out'}"
    # Not part of the string: a name may be empty or hold blanks.
    arguments = (*options.split(), "--mode", name)
    assert (
        run_main(evaluate, monkeypatch, *arguments) == 2 and "plain name" in capsys.readouterr().err
    )


@pytest.mark.parametrize("suffix", [".png", ".tif", ".jpg", ".bmp"])
def test_images_of_absurd_size_are_refused_before_they_are_unpacked(tmp_path, monkeypatch, suffix):
    path = tmp_path / f"bomb{suffix}"
    assert cv2.imwrite(str(path), np.zeros((400, 500), np.uint8))
    monkeypatch.setattr(stored_image, "MAX_PIXELS", 150_000)
    monkeypatch.setattr(cv2, "imdecode", lambda *_: pytest.fail("unpacked"))
    for read in (read_gray, read_mask):
        with pytest.raises(InputError, match=f"bomb{suffix}: 500 x 400 px.*smaller"):
            read(path)


def test_an_image_bomb_is_refused(tmp_path):
    """A file of 200 kB whose header declares 60000 x 60000 pixels."""
    import struct
    import zlib

    def chunk(kind: bytes, data: bytes) -> bytes:
        return (
            struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        )

    rows = zlib.compress(bytes(200 * 2**20), 9)
    path = tmp_path / "bomb.png"
    path.write_bytes(
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", struct.pack(">IIBBBBB", 60_000, 60_000, 8, 0, 0, 0, 0))
        + chunk(b"IDAT", rows)
        + chunk(b"IEND", b"")
    )
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(InputError, match="bomb.png.*smaller"):
        read_gray(path)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 100_000, "kB"
