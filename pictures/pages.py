"""What both reports (of an evaluation and of a training run) share: one HTML file that needs no network.

Templates, style and script are in pictures/templates (Jinja2); charts are plotly's; pictures are embedded.
"""

from __future__ import annotations

import base64
import math
from collections.abc import Sequence
from functools import cache, lru_cache
from pathlib import Path
from typing import Any

import cv2
import plotly.graph_objects as go
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup
from plotly.offline import get_plotlyjs

from geometry.matrices import fit_within
from pictures.drawing import as_rgb
from utils.files import write_text_atomically
from utils.image_files import read_color

TEMPLATES = Path(__file__).resolve().parent / "templates"
# Okabe & Ito: told apart by colour-blind readers too.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#8C6D31", "#5B5B5B")
JPEG_QUALITY = 75


class ImageStore:
    """Pictures of a page, each embedded once however often it is shown."""

    def __init__(self) -> None:
        self.uris: dict[str, str] = {}

    def add(self, path: Path, long_side: int | None = None) -> str | None:
        """Embed a picture and return its name on the page; None when there is no such file.

        Args:
            long_side: shrink it to this; as it is when None.
        """
        if not path.is_file():
            return None
        name = f"{path}@{long_side}"
        if name not in self.uris:
            self.uris[name] = _data_uri(path, long_side, path.stat().st_mtime_ns)
        return name


@lru_cache(maxsize=1024)
def _data_uri(path: Path, long_side: int | None, changed: int) -> str:
    """Encoded once per version of the file: a training run shows its first epochs again after every epoch."""
    image = as_rgb(read_color(path))
    if long_side is not None and max(image.shape[:2]) > long_side:
        image = cv2.resize(
            image, fit_within(image.shape[:2], long_side)[::-1], interpolation=cv2.INTER_AREA
        )
    data = cv2.imencode(".jpg", image[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, JPEG_QUALITY])[
        1
    ].tobytes()
    return f"data:image/jpeg;base64,{base64.b64encode(data).decode('ascii')}"


def chart(title: str, x_title: str, y_title: str, **axes: Any) -> go.Figure:
    """An empty chart in the style of the page; ``axes`` are plotly's layout arguments."""
    figure = go.Figure()
    figure.update_layout(
        template="plotly_white",
        title={"text": title, "x": 0.02, "font": {"size": 15}},
        height=360,
        margin={"l": 56, "r": 12, "t": 46, "b": 48},
        font={"size": 12},
        hovermode="closest",
        legend={"orientation": "h", "y": -0.22, "yanchor": "top"},
        xaxis_title=x_title,
        yaxis_title=y_title,
    )
    figure.update_layout(**axes)
    return figure


def chart_html(figure: go.Figure) -> Markup:
    """A chart for the template; its library is on the page already."""
    return Markup(
        figure.to_html(
            full_html=False,
            include_plotlyjs=False,
            config={"responsive": True, "displayModeBar": False, "scrollZoom": False},
        )
    )


def percent(value: float) -> str:
    """0.875 as "88 %"."""
    return f"{100 * value:.0f} %"


def pixels(value: float) -> str:
    """A length with one decimal; "failed" when infinite."""
    return f"{value:.1f}" if math.isfinite(value) else "failed"


@cache
def _environment() -> Environment:
    environment = Environment(
        loader=FileSystemLoader(TEMPLATES),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"percent": percent, "pixels": pixels}
    return environment


def write_page(
    path: Path,
    template: str,
    images: ImageStore,
    charts: Sequence[tuple[str, Sequence[go.Figure]]],
    **content: Any,
) -> None:
    """Fill a template and write the page.

    Args:
        charts: groups of charts with a heading each.
        content: what the template asks for besides.
    """
    page = (
        _environment()
        .get_template(template)
        .render(
            images=images.uris,
            plotly_js=Markup(get_plotlyjs()),
            charts=[
                (heading, [chart_html(figure) for figure in figures]) for heading, figures in charts
            ],
            **content,
        )
    )
    write_text_atomically(path, page)
