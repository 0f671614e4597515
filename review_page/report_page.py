"""Pages of pairs in one file that needs no server: ``report.html`` of a batch, and a supplement."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from batch.folder import REPORT_NAME
from batch.pair_folder import MANUAL
from pictures.drawing import checkerboard
from pictures.pages import ImageStore, percent, render_page
from review_page.rendering import Pyramid, draw_thumbnail, registered_small, small
from review_page.review_set import ReviewItem, open_review_set
from review_page.verdicts import Verdict
from review_page.workspace import Workspace
from utils.errors import InputError
from utils.files import write_text_atomically

MAX_PICTURES = 60  # pairs with pictures in report.html, the least sure ones; about 5 MB
MAX_SUPPLEMENT = 200  # pairs of a supplement; about 16 MB
PICTURE_PX, SMALL_PX = 512, 224  # long sides of the pictures of a pair and of its thumbnail


def write_batch_report(out: Path) -> Path:
    """Write ``report.html`` of a results folder.

    Args:
        out: folder that register.py wrote.

    Returns:
        Path of the page.

    Raises:
        InputError: no results.
    """
    workspace = Workspace(open_review_set(out))
    items = least_sure_first(list(workspace.review.items.values()))
    counts = Counter(item.status for item in items)
    text = (
        "Least sure first. Where a registration is correct, vessels are continuous across the "
        f"squares. Judge and correct them with: python review.py {out}"
    )
    page = pairs_page(
        workspace, items, "Registered pairs", "Thumbnails", text, MAX_PICTURES, counts.most_common()
    )
    write_text_atomically(out / REPORT_NAME, page)
    return out / REPORT_NAME


def supplement(workspace: Workspace) -> str:
    """A page of the accepted pairs, for the supplement of a paper.

    Args:
        workspace: pairs and verdicts.

    Raises:
        InputError: no accepted pair, or too many.
    """
    items = accepted(workspace)
    if len(items) > MAX_SUPPLEMENT:
        raise InputError(
            f"{len(items)} accepted pairs; one page holds {MAX_SUPPLEMENT}. Export the contact "
            "sheet (PDF) instead."
        )
    counts = [("pairs", len(items)), *Counter(item.kind for item in items).most_common()]
    lead = "Fixed and registered image of every pair that a reader accepted."
    return pairs_page(
        workspace, items, "Registered pairs", "All pairs", lead, MAX_SUPPLEMENT, counts
    )


def accepted(workspace: Workspace) -> list[ReviewItem]:
    """The pairs that were accepted, in the order of the table.

    Args:
        workspace: pairs and verdicts.

    Raises:
        InputError: none.
    """
    verdicts = workspace.verdicts.read()
    items = [
        item
        for item in workspace.review.items.values()
        if verdicts.get(item.id, Verdict()).verdict == "accept"
    ]
    if not items:
        raise InputError(f"{workspace.verdicts.path}: no pair is accepted yet; accept some first.")
    return items


def least_sure_first(items: Sequence[ReviewItem]) -> list[ReviewItem]:
    """Failed pairs, then by rising confidence; those by landmarks last.

    Args:
        items: in the order of the table, which is kept among equals.
    """

    def sureness(item: ReviewItem) -> float:
        if item.status != "ok":
            return -1.0
        return math.inf if item.confidence is None else item.confidence

    return sorted(items, key=sureness)


def pairs_page(
    workspace: Workspace,
    items: Sequence[ReviewItem],
    title: str,
    heading: str,
    lead: str,
    max_pictures: int,
    counts: Sequence[tuple[str, int]],
) -> str:
    """The page as text.

    Args:
        workspace: images and verdicts.
        items: pairs to show, in this order.
        title, heading, lead: texts of the page.
        max_pictures: pairs with pictures; the others are rows of a table.
        counts: numbers at the top, with their names.
    """
    images, verdicts = ImageStore(), workspace.verdicts.read()
    cases: list[dict[str, Any]] = []
    entries: list[dict[str, Any]] = []
    for index, item in enumerate(items):
        entry = {
            "id": item.id,
            "text": describe(item),
            "note": verdicts.get(item.id, Verdict()).note,
            "thumbnail": None,
            "case": None,
        }
        if index < max_pictures:
            _add_pictures(workspace, item, images, entry, cases)
        entries.append(entry)
    return render_page(
        "pairs.html.j2",
        images,
        [],
        title=title,
        heading=heading,
        lead=lead,
        counts=counts,
        cases=cases,
        entries=entries,
    )


def _add_pictures(
    workspace: Workspace,
    item: ReviewItem,
    images: ImageStore,
    entry: dict[str, Any],
    cases: list[dict[str, Any]],
) -> None:
    """Embed the pictures of a pair; a pair that cannot be read keeps the reason instead."""
    try:
        pair = workspace.open(item.id)
        transform = workspace.current_transform(pair)
    except InputError as error:
        entry["text"] = f"{entry['text']} · {error}"
        return
    if transform is None:
        picture = draw_thumbnail(pair.fixed, pair.moving, None)
        entry["thumbnail"] = images.add_image(f"{item.id}/small", picture)
        return
    fixed, registered = registered_small(pair.fixed, pair.moving, transform, PICTURE_PX)
    board = checkerboard(fixed / 255.0, registered / 255.0)
    entry["thumbnail"] = images.add_image(f"{item.id}/small", small(Pyramid([board]), SMALL_PX))
    entry["case"] = len(cases)
    cases.append(
        {
            "id": item.id,
            "text": entry["text"],
            "fixed": images.add_image(f"{item.id}/fixed", fixed),
            "registered": images.add_image(f"{item.id}/registered", registered),
        }
    )


def describe(item: ReviewItem) -> str:
    """The result of a pair as one line.

    Args:
        item: the pair.
    """
    if item.status != "ok":
        return f"{item.status}: {item.reason}" if item.reason else item.status
    source = "by landmarks" if item.source == MANUAL else "automatic"
    sure = "" if item.confidence is None else f", confidence {percent(item.confidence)}"
    return f"{item.kind}, {source}{sure}"
