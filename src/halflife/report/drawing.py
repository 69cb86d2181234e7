"""One drawing → a picture: the look that all pictures share, and an `<svg>` that fits into the page."""

import re
from collections.abc import Callable
from html import escape
from io import BytesIO
from typing import Any

import matplotlib
from cycler import cycler
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from halflife.report.page import Picture

INK = "#010101"  # stands for the page's own colour of text, dark on light or light on dark
COLORS = ["#2f81c7", "#e0762f", "#2f9e6e", "#b0569b", "#8a8f98", "#c2a11c", "#3fa7b5", "#d1495b"]
GREY = "#8a8f98"
STYLE: Any = {  # keys of rcParams
    "font.size": 9.5,
    "text.color": INK,
    "axes.edgecolor": INK,
    "axes.labelcolor": INK,
    "xtick.color": INK,
    "ytick.color": INK,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.prop_cycle": cycler(color=COLORS),
    "axes.linewidth": 0.8,
    "legend.frameon": False,
    "legend.fontsize": 8.5,
    "lines.linewidth": 1.8,
    "svg.fonttype": "none",  # text stays text: it can be searched and read aloud
    "svg.hashsalt": "halflife",  # the same drawing gives the same file
    "text.parse_math": False,  # a name with dollar signs is a name
}


def picture(
    name: str, alt: str, caption: str, draw: Callable[[Figure], None], height: float = 3.3
) -> Picture:
    """Draw once, and keep it as SVG and as PNG.

    Args:
        name, alt, caption: as in `Picture`.
        draw: puts axes on the figure; text that is to have the page's colour is left without one.
        height: inches, of a figure 5.6 inches wide.
    """
    svg, png = BytesIO(), BytesIO()
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(5.6, height), layout="constrained")
        draw(figure)
        figure.savefig(svg, format="svg", transparent=True, metadata={"Date": None})
        figure.savefig(png, format="png", dpi=160, facecolor="white")
    return Picture(name, alt, caption, inline(svg.getvalue().decode(), name, alt), png.getvalue())


def inline(svg: str, name: str, alt: str) -> str:
    """A file of Matplotlib's as an element of a page.

    Ids get the picture's name, since those of two pictures would meet on one page; what names other sites
    (the document type, licence metadata, name spaces that HTML knows by itself) goes.
    """
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    svg = re.sub(r'\sxmlns(:\w+)?="[^"]*"', "", svg)
    svg = re.sub(r'\sid="([^"]*)"', rf' id="{name}-\1"', svg)
    svg = re.sub(r'(url\(#|href="#)', rf"\1{name}-", svg)
    about = f'<svg role="img" aria-label="{escape(alt)}" '
    title = f"<title>{escape(alt)}</title>"
    svg = re.sub(r'<svg[^>]*?(viewBox="[^"]*")[^>]*>', lambda m: f"{about}{m[1]}>{title}", svg, count=1)
    return svg.replace(INK, "currentColor")


def grid(axes: Axes) -> None:
    """Faint lines to read values by."""
    axes.grid(color=GREY, alpha=0.25, lw=0.6)
    axes.set_axisbelow(True)
