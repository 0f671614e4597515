"""HTML pages in one file that needs no network, for the reports of evaluations and training runs.

Templates, styles and scripts are in pictures/templates (Jinja2). Charts are drawn by plotly;
pictures are embedded.
"""

from __future__ import annotations

import base64
import math
from collections.abc import Sequence
from functools import cache, lru_cache
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import plotly.graph_objects as go
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup
from plotly.offline import get_plotlyjs

from geometry.matrices import fit_within
from pictures.drawing import as_rgb
from utils.files import write_text_atomically
from utils.image_files import read_color

TEMPLATES = Path(__file__).resolve().parent / "templates"
# Palette of Okabe and Ito (2008), which colour-blind readers can tell apart.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#8C6D31", "#5B5B5B")
JPEG_QUALITY = 75


class ImageStore:
    """The pictures of a page; each is embedded once.

    Attributes:
        uris: data URI of each picture, by its name on the page.
    """

    def __init__(self) -> None:
        self.uris: dict[str, str] = {}

    def add(self, path: Path, long_side: int | None = None) -> str | None:
        """Embed a picture.

        Args:
            path: of the picture.
            long_side: larger pictures are reduced to this, pixels; None keeps the size.

        Returns:
            Its name on the page; None if there is no such file.
        """
        if not path.is_file():
            return None
        name = f"{path}@{long_side}"
        if name not in self.uris:
            self.uris[name] = _data_uri(path, long_side, path.stat().st_mtime_ns)
        return name

    def add_image(self, name: str, image: np.ndarray) -> str:
        """Embed a picture that is no file.

        Args:
            name: of the picture on the page.
            image: (H, W, 3) uint8 RGB.
        """
        self.uris[name] = _encode(image)
        return name


@lru_cache(maxsize=1024)
def _data_uri(path: Path, long_side: int | None, changed: int) -> str:
    """Encoded once per version of a file: the report of a run is written after every epoch."""
    image = as_rgb(read_color(path))
    height, width = image.shape[:2]
    if long_side is not None and max(height, width) > long_side:
        size = fit_within((height, width), long_side)
        image = cv2.resize(image, size[::-1], interpolation=cv2.INTER_AREA)
    return _encode(image)


def _encode(image: np.ndarray) -> str:
    """Data URI of (H, W, 3) uint8 RGB."""
    quality = [cv2.IMWRITE_JPEG_QUALITY, JPEG_QUALITY]
    _, encoded = cv2.imencode(".jpg", image[..., ::-1], quality)
    return f"data:image/jpeg;base64,{base64.b64encode(encoded.tobytes()).decode('ascii')}"


def chart(title: str, x_title: str, y_title: str, **axes: Any) -> go.Figure:
    """An empty chart in the style of the page.

    Args:
        title: of the chart.
        x_title, y_title: of the axes.
        **axes: further arguments of plotly's ``update_layout``.
    """
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
    """A chart as HTML; the page itself includes the library.

    Args:
        figure: of plotly.
    """
    return Markup(
        figure.to_html(
            full_html=False,
            include_plotlyjs=False,
            config={"responsive": True, "displayModeBar": False, "scrollZoom": False},
        )
    )


def percent(value: float) -> str:
    """A share in [0, 1] as a percentage: 0.875 as "88 %".

    Args:
        value: the share.
    """
    return f"{100 * value:.0f} %"


def pixels(value: float) -> str:
    """A length in pixels with one decimal; "failed" if it is not finite.

    Args:
        value: the length.
    """
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
        path: of the page.
        template: name of a file in pictures/templates.
        images: its pictures.
        charts: groups of charts, each with a heading.
        **content: further variables of the template.
    """
    write_text_atomically(path, render_page(template, images, charts, **content))


def render_page(
    template: str,
    images: ImageStore,
    charts: Sequence[tuple[str, Sequence[go.Figure]]],
    **content: Any,
) -> str:
    """Fill a template.

    Args:
        template: name of a file in pictures/templates.
        images: its pictures.
        charts: groups of charts, each with a heading.
        **content: further variables of the template.
    """
    encoded = [(heading, [chart_html(figure) for figure in group]) for heading, group in charts]
    page = _environment().get_template(template)
    return page.render(
        images=images.uris, plotly_js=Markup(get_plotlyjs()), charts=encoded, **content
    )
