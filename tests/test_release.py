"""The release of a checkpoint: it holds only what matching needs, and matches as the run did."""

from __future__ import annotations

import numpy as np
import pytest

from registration.trained_matchers import INFERENCE_PARTS, load_matcher
from tests.helpers import save_untrained
from training.release import release
from utils.checkpoint import read_checkpoint, save_checkpoint
from utils.errors import InputError


def test_a_release_matches_like_its_checkpoint(tmp_path):
    checkpoint = save_untrained(tmp_path / "run.pth")
    content = read_checkpoint(checkpoint)
    save_checkpoint(checkpoint, content | {"optimizer": {"state": list(range(10000))}, "epoch": 3})
    out = tmp_path / "pretrained" / "ours.pth"
    assert release(checkpoint, out, 1.0) < checkpoint.stat().st_size / 1e6
    assert set(read_checkpoint(out)) == {"format", *INFERENCE_PARTS}
    image = np.random.default_rng(0).random((120, 140), dtype=np.float32)
    first, second = (load_matcher(path)[0].match(image, image) for path in (checkpoint, out))
    assert len(first.fixed_points) > 5 and np.array_equal(first.fixed_points, second.fixed_points)


def test_a_release_matches_with_the_settings_of_the_given_config(tmp_path):
    config, out = tmp_path / "match.yaml", tmp_path / "out.pth"
    config.write_text("match: {long_side: 320}")
    release(save_untrained(tmp_path / "run.pth"), out, 1.0, config)
    assert load_matcher(out)[0].settings.long_side == 320


def test_too_large_or_incomplete_checkpoints_are_refused(tmp_path):
    checkpoint = save_untrained(tmp_path / "run.pth")
    with pytest.raises(InputError, match="more than --max_mb"):
        release(checkpoint, tmp_path / "out.pth", 0.001)
    save_checkpoint(tmp_path / "part.pth", {"kind": "superretina_multimodal"})
    with pytest.raises(InputError, match="lacks"):
        release(tmp_path / "part.pth", tmp_path / "out.pth", 1.0)
    assert not (tmp_path / "out.pth").exists()
