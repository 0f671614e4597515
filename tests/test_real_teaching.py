"""Real samples of a run from epoch to epoch: registered, shown by their shares, judged, guarded."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from helpers import assert_equal_nested, blurred_noise, read_table

from dataset.teaching_samples import TeachingSample
from dataset.view_sources import LANDMARKS, REGISTERED, SELF
from geometry.matrices import translation_matrix
from geometry.transforms import MatrixTransform, Transform
from loss.agreement import Agreement
from registration.consistency import ConsistentRegistration
from training.mixture import Mixture
from training.processes import make_fabric
from training.real_settings import RealSettings
from training.real_teaching import RealTeaching, mix_real, state_of, statistics_of
from training.task import ValidationReport
from training.teaching_set import TeachingSettings
from utils.errors import InputError
from utils.image_files import write_image

SETTINGS = RealSettings(share=0.4, teaching=TeachingSettings(retry_every=2))
FIGURE = "AUC@10"
N_GENERATED = 3


def shifted(x: float) -> MatrixTransform:
    return MatrixTransform(translation_matrix((x, 0.0)))


def sample(key: str, form: str, root: str = "one", folder: Path = Path()) -> TeachingSample:
    transform = None if form == REGISTERED else shifted(0.0)
    tolerance = 4.0 if form == LANDMARKS else 0.0
    files = folder / "fixed.png", folder / "moving.png"
    return TeachingSample(key, key, root, form, *files, transform, tolerance)


def shares_of(mixture: Mixture) -> dict[tuple[int, ...], float]:
    return {g: pytest.approx(s) for g, s in zip(mixture.groups, mixture.shares, strict=True)}


# --- shares ---------------------------------------------------------------------------------------

MIXED = {
    3: sample("a", LANDMARKS),
    4: sample("b", LANDMARKS),
    5: sample("c", LANDMARKS, "two"),
    7: sample("d", SELF),
    9: sample("e", SELF, "two"),
}


def test_without_weights_the_samples_of_a_form_are_shown_equally_often():
    mixture = mix_real(MIXED, SETTINGS, {}, 10)
    # Weights of the forms: landmarks 2, self 1; there is no registered pair.
    assert shares_of(mixture) == {(3, 4): 4 / 9, (5,): 2 / 9, (7,): 1 / 6, (9,): 1 / 6}
    assert sum(mixture.shares) == pytest.approx(1) and mixture.n_samples == 10


def test_weights_divide_each_form_among_the_roots_that_have_it():
    weights = {"one": 0.25, "two": 0.75}
    mixture = mix_real(MIXED, SETTINGS, weights, 10)
    assert shares_of(mixture) == {(3, 4): 1 / 6, (5,): 1 / 2, (7,): 1 / 12, (9,): 1 / 4}
    # Only root "one" has this form: all of it, whatever the weight.
    only = mix_real({3: MIXED[3], 9: MIXED[9]}, SETTINGS, weights, 10)
    assert shares_of(only) == {(3,): 2 / 3, (9,): 1 / 3}


def test_without_samples_there_is_no_mixture():
    assert mix_real({}, SETTINGS, {}, 10) is None


# --- epochs ---------------------------------------------------------------------------------------


class FakeDataset:
    """The samples of a data set: generated ones, which the teaching leaves, then real ones."""

    def __init__(self, real: list[TeachingSample]) -> None:
        self.samples = [object()] * N_GENERATED + real

    def __len__(self) -> int:
        return len(self.samples)


class FakeRegister:
    """Registers by name: a transform is accepted, a text is why it is refused.

    Attributes:
        results: by key; an exception is raised.
        calls: keys, in order.
    """

    def __init__(self, **results: Transform | str | Exception) -> None:
        self.results, self.calls = results, []

    def __call__(self, sample: TeachingSample) -> ConsistentRegistration:
        self.calls.append(sample.key)
        result = self.results[sample.key]
        if isinstance(result, Exception):
            raise result
        reason = result if isinstance(result, str) else ""
        transform = None if reason else result
        points = np.random.default_rng(0).uniform(0, 60, (40, 2))
        return ConsistentRegistration(
            not reason, reason, transform, "affine", 0.9, 2.0, 3.5, points, (90, 100)
        )


@pytest.fixture
def make(tmp_path):
    """Makes a teaching of registered pairs, and of a landmark pair and a single image."""
    for name, size in (("fixed", (80, 90)), ("moving", (90, 100))):
        write_image(tmp_path / f"{name}.png", blurred_noise(size))

    def of(register: FakeRegister, settings=SETTINGS, pairs=("good", "bad"), marked=True):
        real = [sample(key, REGISTERED, folder=tmp_path) for key in pairs]
        if marked:
            real += [sample("marked", LANDMARKS, folder=tmp_path)]
            real += [sample("single", SELF, folder=tmp_path)]
        dataset = FakeDataset(real)
        generated = Mixture((tuple(range(N_GENERATED)),), (1.0,), len(dataset))
        fabric = make_fabric("cpu")
        return RealTeaching(
            dataset, generated, settings, {}, register, fabric, tmp_path / "run", FIGURE
        )

    return of


def report(figure: float) -> ValidationReport:
    return ValidationReport(figure, {FIGURE: figure}, "")


def shown(mixture: Mixture) -> set[int]:
    return {index for group in mixture.groups for index in group}


def test_accepted_pairs_get_their_transform_and_refused_ones_do_not_teach(make):
    teaching = make(FakeRegister(good=shifted(5.0), bad="turned image disagrees by 9 px"))
    untouched = list(teaching.dataset.samples)
    mixture = teaching.begin_epoch(1)
    assert shown(mixture) == {0, 1, 2, 3, 5, 6}, "good, marked and single; not bad"
    assert mixture.n_apart == 3 and sum(mixture.shares[-3:]) == pytest.approx(0.4)
    good, bad = teaching.dataset.samples[3:5]
    assert good.transform.to_dict() == shifted(5.0).to_dict() and good.tolerance_file_px == 3.5
    assert bad.transform is None
    for index in (0, 1, 2, 4, 5, 6):
        assert teaching.dataset.samples[index] is untouched[index]
    rows = {row["key"]: row for row in read_table(teaching.folder / "teaching" / "pairs.csv")}
    assert rows.keys() == {"marked", "good", "bad"}, "single images are no pairs"
    assert rows["bad"]["reason"] == "turned image disagrees by 9 px"


def transforms_of(teaching: RealTeaching) -> list:
    """Transform and tolerance of every sample."""
    return [
        (each.transform and each.transform.to_dict(), each.tolerance_file_px)
        for each in teaching.dataset.samples
        if isinstance(each, TeachingSample)
    ]


def test_an_epoch_can_begin_twice(make):
    register = FakeRegister(good=shifted(5.0), bad="confidence 0.5 below 0.8")
    teaching = make(register)
    first = teaching.begin_epoch(1)
    before, state = transforms_of(teaching), repr(teaching.records.state_dict())
    assert teaching.begin_epoch(1) == first and register.calls == ["good", "bad"]
    assert repr(teaching.records.state_dict()) == state
    assert transforms_of(teaching) == before


def test_refused_pairs_are_tried_again_and_then_teach(make):
    register = FakeRegister(good=shifted(5.0), bad="confidence 0.5 below 0.8")
    teaching = make(register)
    teaching.begin_epoch(1)
    teaching.begin_epoch(2)
    assert register.calls == ["good", "bad"]
    register.results["bad"] = shifted(9.0)
    assert 4 in shown(teaching.begin_epoch(3)) and register.calls == ["good", "bad", "bad"]
    assert teaching.dataset.samples[4].transform is not None


def test_an_unreadable_image_is_refused_with_its_message(make, capsys):
    register = FakeRegister(good=shifted(5.0), bad=InputError("bad.png: not an image"))
    teaching = make(register)
    assert 4 not in shown(teaching.begin_epoch(1))
    record = teaching.records.records["bad"]
    assert (record.status, record.reason) == ("refused", "bad.png: not an image")
    assert "registered 2 pairs without landmarks, 1 can teach" in capsys.readouterr().out


def test_other_errors_are_not_hidden(make):
    with pytest.raises(ZeroDivisionError):
        make(FakeRegister(good=ZeroDivisionError(), bad="no")).begin_epoch(1)


def test_generated_samples_alone_as_long_as_no_real_one_teaches(make, capsys):
    teaching = make(FakeRegister(bad="no"), pairs=("bad",), marked=False)
    assert teaching.begin_epoch(1) is teaching.generated
    assert "no real sample teaches yet" in capsys.readouterr().out


def test_a_pair_whose_matches_disagree_is_shown_no_longer(make, capsys):
    teaching = make(FakeRegister(good=shifted(5.0), bad=shifted(50.0)))
    assert 4 in shown(teaching.begin_epoch(1))
    known = Agreement("g", "generated", 100, 30, 0.2)
    right, wrong = (
        Agreement("good", REGISTERED, 100, 20, 0.2),
        Agreement("bad", REGISTERED, 100, 0, 0.2),
    )
    for epoch in (1, 2, 3):
        for _ in range(16):
            teaching.observe([known, right, wrong])
        assert teaching.end_epoch(epoch, None) == ""
    assert "bad (registered) leaves the real pairs" in capsys.readouterr().out
    mixture = teaching.begin_epoch(4)
    assert 3 in shown(mixture) and 4 not in shown(mixture)
    page = (teaching.folder / "teaching" / "index.html").read_text(encoding="utf-8")
    assert "Left (1)" in page and "its matches disagree" in page


def test_the_guard_lowers_the_share_of_the_next_epoch_then_stops(make):
    settings = replace(SETTINGS, share=0.4, max_drop=0.05, min_share=0.15)
    teaching = make(FakeRegister(good=shifted(5.0), bad="no"), settings)
    teaching.begin_epoch(1)
    assert teaching.end_epoch(1, report(0.7)) == teaching.end_epoch(2, None) == ""
    assert teaching.end_epoch(3, report(0.6)) == ""
    assert sum(teaching.begin_epoch(4).shares[-3:]) == pytest.approx(0.2)
    assert statistics_of(teaching)["real_share"] == pytest.approx(0.2)
    assert "fell from 0.700 to 0.600" in teaching.end_epoch(4, report(0.6))


def test_statistics(make):
    assert statistics_of(None) == {} and state_of(None) == {}
    teaching = make(FakeRegister(good=shifted(5.0), bad="no"))
    assert statistics_of(teaching)["real_waiting"] == 2
    teaching.begin_epoch(1)
    figures = statistics_of(teaching)
    counts = [figures[f"real_{name}"] for name in ("accepted", "refused", "left", "waiting")]
    assert counts == [2, 1, 0, 0] and figures["real_share"] == 0.4


def test_a_resumed_run_gets_the_same_transforms_without_registering_again(make):
    first = make(FakeRegister(good=shifted(5.0), bad="no"))
    mixture = first.begin_epoch(1)
    first.end_epoch(1, report(0.7))
    register = FakeRegister()
    second = make(register)
    for name, part in state_of(second).items():
        part.load_state_dict(state_of(first)[name].state_dict())
    assert second.begin_epoch(1) == mixture and register.calls == []
    assert second.dataset.samples[3].transform.to_dict() == shifted(5.0).to_dict()
    assert_equal_nested(second.records.state_dict(), first.records.state_dict())
    assert second.guard.best == 0.7
