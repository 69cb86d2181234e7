"""What a page is made of, and its two written forms: one HTML file with everything inside, and Markdown.

Jinja2 writes both, since it escapes every string that it is given unless told otherwise: names of runs,
parameters and reasons come from users.
"""

import re
from dataclasses import dataclass, field
from pathlib import Path

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup


@dataclass(frozen=True)
class Picture:
    """A picture in two forms of the same drawing.

    Args:
        name: of its file, and the prefix of the ids inside.
        alt: what it shows, for whoever cannot see it.
        caption: what it says, and how it was made.
        svg: an `<svg>` element for the HTML; text in it has the page's own colour.
        png: the file for the Markdown.
    """

    name: str
    alt: str
    caption: str
    svg: str
    png: bytes


@dataclass(frozen=True)
class Table:
    """Rows of text under a heading a column; the first column names the row."""

    columns: list[str]
    rows: list[list[str]]
    caption: str = ""


@dataclass(frozen=True)
class Section:
    """A heading and what stands under it, in this order: text, pictures, tables, code.

    Args:
        folded: shown as one line in HTML until somebody opens it; a printed page has it open.
    """

    title: str
    text: list[str] = field(default_factory=list)
    pictures: list[Picture] = field(default_factory=list)
    tables: list[Table] = field(default_factory=list)
    code: str = ""
    folded: bool = False


@dataclass(frozen=True)
class Page:
    """A report.

    Args:
        title: of the browser's tab.
        headline: the answer, one sentence.
        lead: what has to be known beside it, one paragraph.
        figures: the few numbers that matter: name, value, what to compare it with.
        sections: in the order they are read.
        caveats: what else every output of these runs says, from `summary.caveats`.
    """

    title: str
    headline: str
    lead: str
    figures: list[tuple[str, str, str]]
    sections: list[Section]
    caveats: list[str] = field(default_factory=list)

    def pictures(self) -> list[Picture]:
        """All pictures, in order."""
        return [picture for section in self.sections for picture in section.pictures]


def write(page: Page, html: Path) -> None:
    """Write `html`, the Markdown beside it, and a folder with the Markdown's pictures, all named alike.

    Args:
        page: to be written.
        html: the HTML file; its directory exists.
    """
    folder = html.with_suffix("")
    folder.mkdir(exist_ok=True)
    for picture in page.pictures():
        (folder / f"{picture.name}.png").write_bytes(picture.png)
    html.with_suffix(".md").write_text(render(page, "page.md.jinja", folder.name))
    html.write_text(render(page, "page.html.jinja", folder.name))


def render(page: Page, template: str, folder: str) -> str:
    """The page as text.

    Args:
        page: to be written.
        template: `page.html.jinja` or `page.md.jinja`.
        folder: where the Markdown finds its pictures.
    """
    environment = Environment(
        loader=PackageLoader("halflife.report", ""),
        autoescape=template.endswith("html.jinja"),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"md": markdown, "svg": Markup}
    return environment.get_template(template).render(page=page, folder=folder)


def markdown(text: str) -> str:
    """Text that Markdown shows as it is, also in a cell of a table.

    >>> markdown("a|b <script> *c* decay.lr_x")
    'a\\\\|b &lt;script> \\\\*c\\\\* decay.lr\\\\_x'
    """
    return re.sub(r"([\\`*_|\[\]])", r"\\\1", " ".join(text.split())).replace("<", "&lt;")
