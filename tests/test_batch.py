"""Batches in one process: going on, doing again, refusing, stopping."""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path

import pytest
from batch_works import case_work, rows_named, run_cases
from helpers import read_table, run_main

import benchmarks.batch
from batch.command import BatchOptions, register_pairs
from batch.engine import Fault, InProcess, StopRequest, Task
from batch.folder import locked
from batch.pair_folder import clear_pair
from batch.run_record import record_of
from registration.pair_tables import read_results
from utils.errors import InputError, RunStoppedError


@pytest.fixture
def out(tmp_path) -> Path:
    return tmp_path / "out"


def ids_and_status(out: Path) -> list[tuple[str, str]]:
    return [(row["id"], row["status"]) for row in read_table(out / "results.csv")]


def lines_of(out: Path) -> list[dict]:
    return [json.loads(line) for line in (out / "journal.jsonl").read_text().splitlines()]


def test_a_batch_has_every_row_once_in_the_order_of_the_table(out):
    rows = rows_named("b", "bad", "a", "B", "../x", "run.json")
    summary = run_cases(out, rows)
    assert (summary.n_rows, summary.n_ok, summary.n_kept, summary.n_new) == (6, 2, 0, 3)
    assert ids_and_status(out) == [
        *(("b", "ok"), ("bad", "failed"), ("a", "ok")),
        *((row.id, "failed") for row in rows[3:]),
    ]
    last = read_table(out / "results.csv")
    assert "twice" in last[3]["reason"] and "plain name" in last[4]["reason"]
    assert last[0]["fixed"] == "/none/b_cf.png" and last[0]["eye"] == "b"
    run = json.loads((out / "run.json").read_text())
    assert run["weights_sha256"] == "0" and run["versions"][0]["torch"]
    assert "3 pairs to register" in (out / "register.log").read_text()


def test_a_second_start_keeps_all_rows_and_adds_new_ones(out, capsys):
    run_cases(out, rows_named("a", "bad"))
    before = (out / "results.csv").read_bytes()
    assert run_cases(out, rows_named("a", "bad")).n_kept == 2
    assert "2 of 2 rows are done and kept" in capsys.readouterr().out
    assert (out / "results.csv").read_bytes() == before and len(lines_of(out)) == 2
    summary = run_cases(out, rows_named("new", "a"))
    assert (summary.n_kept, summary.n_new) == (1, 1)
    assert [name for name, _ in ids_and_status(out)] == ["new", "a", "bad"]


def test_failed_rows_are_done_again_on_request(out):
    run_cases(out, rows_named("a", "bad"))
    summary = run_cases(out, rows_named("a", "bad"), retry_failed=True)
    assert (summary.n_kept, summary.n_new) == (1, 1)


def test_a_pair_that_a_person_rescued_is_not_done_again(out):
    run_cases(out, rows_named("bad"))
    manual = json.dumps({"source": "manual", "fixed": {}, "moving": {}})
    (out / "bad").mkdir(exist_ok=True)
    (out / "bad" / "transform.json").write_text(manual)
    assert run_cases(out, rows_named("bad"), retry_failed=True).n_kept == 1
    assert (out / "bad" / "transform.json").read_text() == manual


def test_rows_with_changed_images_or_lost_files_are_done_again(out, tmp_path):
    images = [tmp_path / f"{name}_cf.png" for name in "abc"]
    rows = rows_named("a", "b", "c", fixed=f"{tmp_path}/{{}}_cf.png")
    for image in images:
        image.write_bytes(b"1")
    run_cases(out, rows)
    images[0].write_bytes(b"12")
    os.utime(images[1], ns=(1, 1))
    summary = run_cases(out, rows)
    assert (summary.n_kept, summary.n_new) == (1, 2)
    clear_pair(out / "c")
    summary = run_cases(out, rows)
    assert (summary.n_kept, summary.n_new) == (2, 1)
    assert (out / "c" / "transform.json").is_file() and len(ids_and_status(out)) == 3


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"transform": "auto"}, "transform affine there, auto now"),
        ({"img_size": 256}, "img_size default there, 256 now"),
        ({"exports": ("itk",)}, "export none there, itk now"),
        ({"weights": "other.pth", "weights_sha256": "1"}, "weights none there, other.pth now"),
    ],
)
def test_other_settings_are_refused_or_start_anew(out, settings, said):
    run_cases(out, rows_named("a", "b"))
    before = (out / "journal.jsonl").read_bytes()
    work = case_work(out, **settings)
    with pytest.raises(InputError, match=said) as raised:
        register_pairs(rows_named("a"), work, BatchOptions(workers=1))
    assert "--overwrite" in str(raised.value)
    assert (out / "journal.jsonl").read_bytes() == before
    register_pairs(rows_named("a"), work, BatchOptions(workers=1, overwrite=True))
    assert ids_and_status(out) == [("a", "ok")] and not (out / "b").exists()
    assert json.loads((out / "run.json").read_text())["settings"] == record_of(work).settings


def test_one_pair_alone_may_be_tried_with_other_settings(out):
    pair, other = rows_named("a"), rows_named("b")
    alone = BatchOptions(workers=1)
    register_pairs(pair, case_work(out), alone, is_table=False)
    register_pairs(pair, case_work(out, transform="auto"), alone, is_table=False)
    assert len(lines_of(out)) == 1
    with pytest.raises(InputError, match="transform auto there"):
        register_pairs(other, case_work(out), alone, is_table=False)
    register_pairs(other, case_work(out, transform="auto"), alone, is_table=False)
    assert ids_and_status(out) == [("b", "ok"), ("a", "ok")]


def test_other_versions_are_recorded_beside_the_first(out):
    run_cases(out, rows_named("a"))
    content = json.loads((out / "run.json").read_text())
    content["versions"][0]["torch"] = "1.0"
    (out / "run.json").write_text(json.dumps(content))
    run_cases(out, rows_named("a"))
    versions = json.loads((out / "run.json").read_text())["versions"]
    assert [each["torch"] == "1.0" for each in versions] == [True, False]


def test_a_folder_of_other_images_is_never_overwritten(out):
    run_cases(out, rows_named("a"))
    changed = rows_named("a", "b", fixed="/other/{}_cf.png")
    with pytest.raises(InputError, match="/none/a_cf.png"):
        run_cases(out, changed)
    (out / "journal.jsonl").unlink()
    (out / "results.csv").unlink()
    with pytest.raises(InputError, match="/none/a_cf.png"):
        run_cases(out, changed)
    run_cases(out, changed, overwrite=True)
    owner = json.loads((out / "a" / "transform.json").read_text())["fixed"]["path"]
    assert owner == "/other/a_cf.png"


def test_files_that_are_no_results_are_never_overwritten(out):
    (out / "a").mkdir(parents=True)
    (out / "a" / "registered.png").write_text("mine")
    (out / "a" / "notes.txt").write_text("mine")
    for overwrite in (False, True):
        with pytest.raises(InputError, match="no results"):
            run_cases(out, rows_named("a"), overwrite=overwrite)
    assert (out / "a" / "registered.png").read_text() == "mine"


def test_what_a_killed_process_left_of_a_pair_is_done_again(out):
    (out / "a").mkdir(parents=True)
    (out / "a" / "registered.png").write_text("half")
    (out / "a" / ".matches.png.123.tmp").write_text("half")
    clear_pair(out / "a")
    assert not (out / "a").exists()


def test_results_of_an_earlier_version_are_refused(out):
    out.mkdir()
    (out / "results.csv").write_text("id,status\na,ok\n")
    with pytest.raises(InputError, match="has no journal"):
        run_cases(out, rows_named("a"))
    assert (out / "results.csv").read_text() == "id,status\na,ok\n"


def test_a_second_process_on_a_folder_is_refused(out):
    with locked(out), pytest.raises(InputError, match=f"process {os.getpid()} on"):
        run_cases(out, rows_named("a"))
    run_cases(out, rows_named("a"))


def test_pairs_without_ids_keep_those_that_they_got(out):
    rows = [row._replace(id="") for row in rows_named("P1/x", "P2/x")]
    run_cases(out, rows[:1])
    run_cases(out, rows)
    assert ids_and_status(out) == [("x_cf_x_fa", "ok"), ("P2_x_cf_x_fa", "ok")]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_stop_keeps_what_is_done_and_names_the_command(out, monkeypatch, number):
    import batch_works

    do = batch_works.CaseWork.do

    def stopped(self, row):
        if row.id == "b":
            os.kill(os.getpid(), number)
        return do(self, row)

    rows = rows_named("a", "b", "c")
    with monkeypatch.context() as patch:
        patch.setattr(batch_works.CaseWork, "do", stopped)
        with pytest.raises(RunStoppedError, match="2 of 3 rows .* to go on: the command"):
            run_cases(out, rows, command="the command")
    assert ids_and_status(out) == [("a", "ok"), ("b", "ok")]
    assert run_cases(out, rows).n_new == 1


def test_a_second_signal_does_not_wait(out):
    stop = StopRequest()
    with stop.listening():
        os.kill(os.getpid(), signal.SIGTERM)
        assert stop.requested
        os.kill(os.getpid(), signal.SIGTERM)
        with pytest.raises(KeyboardInterrupt), stop.at_once():
            os.kill(os.getpid(), signal.SIGINT)


def test_a_full_disk_stops_the_batch_and_loses_nothing(out, monkeypatch):
    rows = rows_named("a", "b", "c")
    run_cases(out, rows[:1])
    with monkeypatch.context() as patch:

        def full(self, content):
            raise OSError(28, "No space left on device")

        patch.setattr("batch.journal.Journal.append", full)
        with pytest.raises(InputError, match="No space left"):
            run_cases(out, rows)
    assert run_cases(out, rows).n_kept == 1


def test_a_pair_beyond_its_time_in_this_process(out):
    engine = InProcess(case_work(out), timeout=0.05)
    task = Task(0, rows_named("hang")[0], 1)
    engine.submit(task)
    assert engine.n_free() == 0
    assert engine.wait(1.0) == [(task, None, Fault.TIMEOUT, "")]
    summary = run_cases(out, rows_named("hang", "a"), timeout=0.05)
    assert summary.n_ok == 1
    assert "0.05 s (--timeout)" in read_table(out / "results.csv")[0]["reason"]


def test_the_parquet_table_has_the_same_rows(out):
    parquet = pytest.importorskip("pyarrow.parquet", reason="needs requirements-cluster.txt")
    rows = [row._replace(extra={"note": "=1"}) for row in rows_named("a", "bad")]
    run_cases(out, rows)
    table = parquet.read_table(out / "results.parquet").to_pylist()
    assert [row["h02"] for row in table] == [97.0, None]
    names = ("id", "status", "reason", "fixed", "note")
    assert [[row[name] for name in names] for row in table] == [
        [row[name] for name in names] for row in read_results(out / "results.csv")
    ]


def test_the_measurement_of_rows(monkeypatch, tmp_path, capsys):
    """Cost and memory of the rows themselves; the figures are in docs/scale.md."""
    options = ("--pairs", 2500, "--out", tmp_path / "figures.jsonl")
    assert run_main(benchmarks.batch, monkeypatch, "rows", *options) == 0
    figures = json.loads((tmp_path / "figures.jsonl").read_text())
    assert figures["rows"] == figures["restart_kept"] == 2500
    assert len(figures["mb_by_tenth"]) == 10 and figures["journal_mb"] < 3
    # Quadratic cost would show even in so few rows; processor time is not disturbed by others.
    tenths = figures["processor_ms_a_row_by_tenth"]
    assert sum(tenths[-3:]) < 3 * sum(tenths[:3])
