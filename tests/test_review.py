"""The review page without a browser: what is read, kept, refused and drawn."""

from __future__ import annotations

import csv
import io
import json
import re
import threading
from pathlib import Path

import numpy as np
import pytest
from helpers import run_main
from PIL import Image
from review_helpers import write_results_folder, write_table
from starlette.testclient import TestClient

import register
from geometry.curved_transforms import QuadraticTransform, unit_frame
from geometry.rasters import register_onto_fixed
from geometry.transform_files import read_transform
from geometry.transforms import MatrixTransform
from registration.pair_tables import MATRIX_COLUMNS, RESULT_COLUMNS
from review_page.rendering import (
    TILE_PX,
    BoundedCache,
    level_size,
    make_pyramid,
    n_levels,
    plain_tile,
    registered_tile,
)
from review_page.report_page import write_batch_report
from review_page.review_set import ReviewOptions, open_review_set
from review_page.server import make_app
from review_page.verdicts import Verdict, VerdictStore
from review_page.workspace import Workspace
from utils.errors import InputError

TOKEN, HOST = "secret-token", "127.0.0.1:8700"


@pytest.fixture
def results(tmp_path, generated_root) -> Path:
    return write_results_folder(tmp_path, generated_root, ["p1", "p2", "p3"], failed=["p2"])


def client_of(folder: Path, read_only: bool = False, options: ReviewOptions | None = None):
    workspace = Workspace(open_review_set(folder, options))
    app = make_app(workspace, TOKEN, {HOST}, read_only)
    return TestClient(app, base_url=f"http://{HOST}/{TOKEN}/"), workspace


# --- what is read ---------------------------------------------------------------------------------


def test_a_results_folder_is_read_by_the_names_of_its_columns(results):
    items = open_review_set(results).items
    assert list(items) == ["p1", "p2", "p3"]
    assert (items["p1"].status, items["p1"].source, items["p1"].kind) == (
        "ok",
        "automatic",
        "affine",
    )
    assert items["p1"].confidence == pytest.approx(0.5)
    assert items["p2"].status == "failed" and items["p2"].reason == "only 4 matches"
    assert items["p2"].fixed is not None, "a failed pair can still be opened"


def test_a_row_with_a_hostile_id_has_no_folder(results):
    rows = [dict.fromkeys(RESULT_COLUMNS, "") | {"id": "../../etc", "status": "failed"}]
    write_table(results / "results.csv", rows)
    item = open_review_set(results).items["../../etc"]
    assert item.folder is None and item.fixed is None and item.landmark_files == ()


def test_a_linked_folder_outside_is_not_read(results, tmp_path):
    (tmp_path / "elsewhere").mkdir()
    (results / "p3").rename(tmp_path / "elsewhere" / "p3")
    (results / "p3").symlink_to(tmp_path / "elsewhere" / "p3")
    assert open_review_set(results).items["p3"].folder is None


def test_images_are_confined_to_the_given_folders_and_found_when_moved(results, tmp_path):
    other = tmp_path / "other"
    other.mkdir()
    items = open_review_set(results, ReviewOptions(images=(other,))).items
    assert items["p1"].fixed is None and "--images" in items["p1"].reason
    (tmp_path / "images").rename(other / "images")
    items = open_review_set(results, ReviewOptions(images=(other,))).items
    assert items["p1"].fixed == other / "images" / "p1_cf.png"


def test_only_images_are_read(results):
    path = results / "p1" / "transform.json"
    content = json.loads(path.read_text())
    content["fixed"]["path"] = "/etc/passwd"
    path.write_text(json.dumps(content))
    assert open_review_set(results).items["p1"].fixed is None


def test_a_damaged_transform_is_a_failed_pair_with_a_reason(results):
    (results / "p1" / "transform.json").write_text("{")
    item = open_review_set(results).items["p1"]
    assert item.status == "failed" and "transform.json" in item.reason


def test_a_data_set_is_read_with_and_without_landmarks(numbered_root, tmp_path):
    import shutil

    root = tmp_path / "set"
    shutil.copytree(numbered_root[0], root)
    (root / "1_2" / "002_01.txt").unlink()
    items = open_review_set(root).items
    assert {name: item.has_landmarks for name, item in items.items()} == {
        "1_1_001": True,
        "1_2_002": False,
        "2_1_003": True,
    }
    assert {item.status for item in items.values()} == {"none"}


def test_a_folder_of_neither_kind_is_refused(tmp_path):
    (tmp_path / "empty" / "more").mkdir(parents=True)
    with pytest.raises(InputError, match="no pairs of any layout"):
        open_review_set(tmp_path / "empty")


# --- verdicts -------------------------------------------------------------------------------------


def test_verdicts_survive_and_keep_what_others_wrote(tmp_path):
    path = tmp_path / "review.csv"
    path.write_text("id,verdict,note,reader\np9,accept,old,me\n")
    first, second = VerdictStore(path), VerdictStore(path)
    first.read()
    second.change("p1", verdict="reject")
    first.change("p2", verdict="unsure", note='blurred,\n"dark"')
    first.change("p1", note="kept beside the verdict")
    assert VerdictStore(path).read() == {
        "p9": Verdict("accept", "old"),
        "p1": Verdict("reject", "kept beside the verdict"),
        "p2": Verdict("unsure", 'blurred, "dark"'),
    }
    assert path.read_text().splitlines()[1] == "p9,accept,old,me"


def test_parallel_changes_are_all_kept(tmp_path):
    def judge(start: int) -> None:
        store = VerdictStore(tmp_path / "review.csv")
        for index in range(start, start + 10):
            store.change(f"p{index}", verdict="accept")

    threads = [threading.Thread(target=judge, args=(10 * n,)) for n in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(VerdictStore(tmp_path / "review.csv").read()) == 30


def test_a_foreign_file_is_not_overwritten(tmp_path):
    path = tmp_path / "review.csv"
    path.write_text("name\nmine\n")
    with pytest.raises(InputError, match="column"):
        VerdictStore(path).change("p1", verdict="accept")
    assert path.read_text() == "name\nmine\n"


@pytest.mark.parametrize("change", [{"verdict": "good"}, {"note": "x" * 3000}])
def test_wrong_verdicts_are_refused(tmp_path, change):
    with pytest.raises(InputError):
        VerdictStore(tmp_path / "review.csv").change("p1", **change)
    assert not (tmp_path / "review.csv").exists()


# --- security -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("path", "headers"),
    [
        ("/api/pairs", {}),
        ("/wrong/api/pairs", {}),
        ("/", {}),
        (f"/{TOKEN}/api/pairs", {"host": "evil.example:8700"}),
        (f"/{TOKEN}/api/pairs", {"origin": "http://evil.example"}),
        (f"/{TOKEN}/api/pairs", {"origin": "null"}),
        (f"/{TOKEN}/api/pairs", {"sec-fetch-site": "cross-site"}),
    ],
)
def test_requests_of_others_are_refused(results, path, headers):
    client, _ = client_of(results)
    answer = client.get(f"http://{HOST}{path}", headers=headers)
    assert answer.status_code == 403 and "p1" not in answer.text


def test_the_page_itself_is_served_with_guarding_headers(results):
    client, _ = client_of(results)
    answer = client.get("", headers={"origin": f"http://{HOST}"})
    assert (
        answer.status_code == 200
        and "default-src 'none'" in answer.headers["content-security-policy"]
    )
    assert answer.headers["referrer-policy"] == "no-referrer"


@pytest.mark.parametrize("name", ["..%2f..%2freview.py", "../server.py", "%2e%2e/server.py"])
def test_no_path_leads_out_of_the_page(results, name):
    client, _ = client_of(results)
    assert client.get(f"static/{name}").status_code in (403, 404)


def test_changes_need_json_and_a_writable_page(results):
    client, workspace = client_of(results)
    form = client.post("api/verdict", data={"id": "p1", "verdict": "accept"})
    assert form.status_code == 415, "a form of another site needs no permission of the browser"
    assert client.post("api/verdict", json=["p1"]).status_code == 422
    assert client.post("api/verdict", json={"id": "gone", "verdict": "accept"}).status_code == 422
    reading, _ = client_of(results, read_only=True)
    assert reading.post("api/verdict", json={"id": "p1", "verdict": "accept"}).status_code == 403
    assert not (results / "review.csv").exists()
    assert client.post("api/verdict", json={"id": "p1", "verdict": "accept"}).status_code == 200
    assert workspace.list_verdicts() == {"p1": ["accept", ""]}


def test_a_pair_without_images_has_an_answer(results):
    (results.parent / "images" / "p1_cf.png").unlink()
    client, _ = client_of(results)
    answer = client.get("api/pair", params={"id": "p1"})
    assert answer.status_code == 422 and "p1" in answer.json()["error"]


# --- pictures -------------------------------------------------------------------------------------


def test_thumbnails_are_drawn_for_every_status(results):
    client, _ = client_of(results)
    for name in ("p1", "p2"):
        answer = client.get("api/thumbnail", params={"id": name})
        assert answer.status_code == 200 and answer.content[:2] == b"\xff\xd8"


def test_levels_end_with_a_small_one():
    assert n_levels((100, 200)) == 1 and n_levels((4000, 3000)) == 5
    assert level_size((4001, 3001), 1) == (2001, 1501)


def smooth_picture(size: tuple[int, int]) -> np.ndarray:
    y, x = np.mgrid[: size[0], : size[1]]
    waves = np.stack([np.sin(x / 31), np.cos(y / 23), np.sin((x + y) / 41)], axis=-1)
    return (127 + 120 * waves).astype(np.uint8)


@pytest.mark.parametrize("curved", [False, True])
def test_registered_tiles_show_what_the_whole_image_would(curved):
    fixed_size, moving = (700, 900), smooth_picture((820, 760))
    H = np.array([[0.8, 0.1, 12.3], [-0.12, 0.85, 90.7], [0.0, 0.0, 1.0]])
    transform = MatrixTransform(H)
    if curved:
        frame = unit_frame(np.array([[100.0, 100], [800, 100], [100, 600], [800, 600]]))
        coefficients = np.zeros((2, 6))
        linear = H @ np.linalg.inv(frame)
        coefficients[:, 0], coefficients[:, 1:3] = linear[:2, 2], linear[:2, :2]
        coefficients[:, 3] = 6.0
        transform = QuadraticTransform(frame, coefficients)
    whole = 255 * register_onto_fixed(moving / np.float32(255), transform, fixed_size)
    tile = registered_tile(make_pyramid(moving), transform, fixed_size, 0, 1, 0)
    part = whole[:TILE_PX, TILE_PX:900]
    assert tile.shape == part.shape
    inside = (part > 0).all(axis=-1)
    assert inside.mean() > 0.3 and np.abs(tile - part)[inside].max() < 6


def test_a_tile_of_a_level_is_the_part_of_the_reduced_image():
    pyramid = make_pyramid(smooth_picture((1500, 1100)))
    tile = plain_tile(pyramid, 1, 1, 0)
    assert tile.shape == (TILE_PX, 550 - TILE_PX, 3)
    assert plain_tile(pyramid, 1, 2, 0) is None and plain_tile(pyramid, 9, 0, 0) is None


def test_tiles_are_answered_and_wrong_ones_refused(results):
    client, _ = client_of(results)
    pair = client.get("api/pair", params={"id": "p1"}).json()
    query = {"id": "p1", "level": 0, "x": 0, "y": 0}
    registered = {**query, "layer": "registered", "t": pair["transform"]["name"]}
    assert client.get("api/tile", params=registered).content[:2] == b"\xff\xd8"
    assert client.get("api/tile", params={**query, "layer": "fixed", "x": 9}).status_code == 404
    for wrong in ({"layer": "other"}, {"layer": "registered", "t": "x"}, {"level": "one"}):
        assert client.get("api/tile", params={**query, **wrong}).status_code == 422


def test_the_cache_keeps_its_bound_and_computes_once():
    cache, made = BoundedCache(10), []

    def make(value: int):
        return lambda: (made.append(value), 4)

    for value in (1, 2, 1, 3):
        cache.get(value, make(value))
    assert made == [1, 2, 3] and cache.n_bytes == 8
    cache.get(2, make(2))
    assert made == [1, 2, 3, 2], "the least recently used was dropped"


def test_pairs_are_listed_with_their_verdicts(results):
    client, workspace = client_of(results)
    workspace.verdicts.change("p1", "accept", "clear")
    found = client.get("api/pairs").json()
    assert [pair["id"] for pair in found["pairs"]] == ["p1", "p2", "p3"]
    assert found["verdicts"] == {"p1": ["accept", "clear"]} and not found["read_only"]


# --- exports --------------------------------------------------------------------------------------


def test_accepted_pairs_are_exported_with_their_matrices(results):
    client, workspace = client_of(results)
    refused = client.get("api/export/accepted.csv")
    assert refused.status_code == 422 and "accept" in refused.json()["error"]
    workspace.verdicts.change("p1", "accept", "clear, sharp")
    workspace.verdicts.change("p3", "reject")
    rows = list(csv.DictReader(io.StringIO(client.get("api/export/accepted.csv").text)))
    assert [(row["id"], row["note"], row["kind"]) for row in rows] == [
        ("p1", "clear, sharp", "affine")
    ]
    saved = read_transform(results / "p1" / "transform.json").fix_to_mov.approximate_matrix()
    values = [float(rows[0][name]) for name in MATRIX_COLUMNS]
    np.testing.assert_array_equal(np.reshape(values, (3, 3)), saved)


@pytest.mark.parametrize(
    ("name", "start"),
    [
        ("contact_sheet.pdf", b"%PDF"),
        ("contact_sheet.png", b"\x89PNG"),
        ("flicker.gif", b"GIF8"),
        ("flicker.webp", b"RIFF"),
    ],
)
def test_pictures_are_exported(results, name, start):
    client, workspace = client_of(results)
    for identity in ("p1", "p2", "p3"):
        workspace.verdicts.change(identity, "accept")
    answer = client.get(f"api/export/{name}", params={"id": "p1"})
    assert answer.status_code == 200 and answer.content.startswith(start)
    assert name in answer.headers["content-disposition"]
    if name.startswith("flicker"):
        with Image.open(io.BytesIO(answer.content)) as animation:
            assert animation.n_frames == 2
        assert client.get(f"api/export/{name}", params={"id": "p2"}).status_code == 422


def test_the_supplement_needs_no_server_and_escapes_names(results):
    client, workspace = client_of(results)
    workspace.verdicts.change("p1", "accept", "<script>alert(1)</script>")
    page = client.get("api/export/supplement.html").text
    assert "data:image/jpeg" in page and "<script>alert(1)" not in page
    assert "<strong>p1" in page and "<strong>p3" not in page
    assert not re.search(r"(src|href)=.?https?:", page)


def test_a_batch_has_a_report_with_the_least_sure_first(results):
    page = write_batch_report(results).read_text()
    shown = re.findall(r"<strong>(p\d)</strong>", page)
    assert shown == ["p2", "p1", "p3"] and "only 4 matches" in page
    cases = json.loads(re.search(r'id="cases">(.*?)</script>', page)[1])
    assert [case["id"] for case in cases] == ["p1", "p3"], "a failed pair has no registered image"


def test_register_ends_with_the_report_and_on_request_with_the_page(
    tmp_path, monkeypatch, generated_root, untrained_weights, capsys
):
    fixed, moving = (generated_root / "1_A" / f"1_A_{name}.png" for name in ("cf", "fa_gen"))
    opened: list[Path] = []
    monkeypatch.setattr(register, "review", opened.append)
    out = tmp_path / "out"
    arguments = (fixed, moving, "--out", out, "--weights", untrained_weights)
    run_main(register, monkeypatch, *arguments)
    assert not opened and "review.py" in capsys.readouterr().out
    assert "1_A_cf_1_A_fa_gen" in (out / "report.html").read_text()
    run_main(register, monkeypatch, *arguments, "--review")
    assert opened == [out] and (out / "1_A_cf_1_A_fa_gen" / "matches.npz").is_file()
