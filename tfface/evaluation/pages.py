"""Pages made of blocks, in HTML and in Markdown.

A page is a list of sections, a section a list of blocks: text, code, table, picture, gallery. HTML and
Markdown are two renderings of the same blocks, so neither can say more than the other. Pictures are drawn for
light and for dark pages; the HTML needs no script and fetches nothing.
"""

from __future__ import annotations

import base64
import html
import io
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, NamedTuple

import jinja2
import numpy as np
from matplotlib.figure import Figure
from PIL import Image

from tfface.evaluation import plots
from tfface.files import make_folder, write_text


@dataclass(frozen=True)
class Text:
    """A paragraph."""

    kind: ClassVar[str] = "text"
    text: str


@dataclass(frozen=True)
class Code:
    """A command or other text that is shown as it stands."""

    kind: ClassVar[str] = "code"
    text: str


@dataclass(frozen=True)
class Table:
    """A table of strings.

    Attributes:
        head: names of the columns.
        rows: one sequence of strings a row, as long as `head`.
        caption: what the table shows.
        text_columns: indices of the columns of words, on the left; the others are numbers, on the right.
        small_rows: indices of the rows that are drawn quieter.
        folded: whether a page shows only the caption until it is opened.
    """

    kind: ClassVar[str] = "table"
    head: Sequence[str]
    rows: Sequence[Sequence[str]]
    caption: str = ""
    text_columns: Sequence[int] = (0,)
    small_rows: Sequence[int] = ()
    folded: bool = False

    def markdown(self) -> str:
        """The table in GitHub's Markdown, with whatever would break it escaped."""
        rule = [":---" if i in self.text_columns else "---:" for i in range(len(self.head))]
        rows = [map(_escaped, self.head), rule, *(map(_escaped, row) for row in self.rows)]
        return "\n".join(f"| {' | '.join(row)} |" for row in rows)


@dataclass(frozen=True)
class Picture:
    """A figure, shown in the colours of a light or of a dark page.

    Attributes:
        name: name of its file, without the ending.
        caption: what it shows, also to those who cannot see it.
        draw: draws it, in the style of `plots`.
        size: "half" of the width of a page; "dense" is the same, not shrunk below legibility on a phone;
            "wide".
    """

    kind: ClassVar[str] = "picture"
    name: str
    caption: str
    draw: Callable[..., Figure]
    size: str = "half"


@dataclass(frozen=True)
class Gallery:
    """Photos with captions.

    Attributes:
        name: name of its file, without the ending.
        caption: what is shown.
        tiles: images, (height, width, 3) uint8 RGB, each with its caption.
    """

    kind: ClassVar[str] = "gallery"
    name: str
    caption: str
    tiles: Sequence[tuple[np.ndarray, str]]

    def __post_init__(self):
        for image, caption in self.tiles:
            if getattr(image, "dtype", None) != np.uint8 or image.ndim != 3 or image.shape[2] != 3:
                received = f"{getattr(image, 'dtype', type(image))} {getattr(image, 'shape', '')}"
                raise ValueError(f"Images must be (height, width, 3) uint8. Received: {received} for {caption!r}")


@dataclass(frozen=True)
class Section:
    """A heading and what stands below it."""

    title: str
    blocks: Sequence[Text | Code | Table | Picture | Gallery]

    @property
    def anchor(self) -> str:
        """The section's name in a link."""
        return slug(self.title)


class Tile(NamedTuple):
    """A headline figure: its name, its value, and a detail such as its interval."""

    name: str
    value: str
    detail: str


@dataclass(frozen=True)
class Page:
    """A whole page.

    Attributes:
        title: its heading.
        summary: one line below the heading.
        tiles: headline figures.
        sections: its body.
        footer: its last line.
    """

    title: str
    summary: str
    tiles: Sequence[Tile]
    sections: Sequence[Section]
    footer: str

    def write(self, folder: Path) -> dict[str, Path]:
        """Write report.html, report.md and pictures in the folder figures/, each file aside first and then renamed.

        What else is in that folder stays: it may be somebody's own.

        Args:
            folder: where to; made when absent.

        Returns:
            The paths by kind: "html", "markdown", "figures".
        """
        sources, figures = {}, make_folder(folder / "figures")
        for block in (block for section in self.sections for block in section.blocks):
            if isinstance(block, Picture):
                drawing = plots.svg(block.draw())
                write_text(figures / f"{block.name}.svg", drawing.decode())
                dark = plots.for_dark_pages(drawing)
                sources[block.name] = {"light": _uri("svg+xml", drawing), "dark": _uri("svg+xml", dark)}
            elif isinstance(block, Gallery):
                plots.save(plots.sheet(*zip(*block.tiles, strict=True)), figures / f"{block.name}.jpg", dpi=120)
        return {
            "html": write_text(folder / "report.html", self._html(sources)),
            "markdown": write_text(folder / "report.md", self._markdown()),
            "figures": figures,
        }

    def _html(self, sources: dict[str, dict[str, str]]) -> str:
        environment = jinja2.Environment(
            loader=jinja2.FileSystemLoader(Path(__file__).parent),
            autoescape=True,
            trim_blocks=True,
            lstrip_blocks=True,
            undefined=jinja2.StrictUndefined,
        )
        template = environment.get_template("report.html")
        return template.render(page=self, sources=sources, photo=_photo)

    def _markdown(self) -> str:
        parts = [f"# {_escaped(self.title)}", _escaped(self.summary)]
        parts.append("\n".join(f"- {tile.name}: **{tile.value}** ({_escaped(tile.detail)})" for tile in self.tiles))
        for section in self.sections:
            parts.append(f"## {_escaped(section.title)}")
            for block in section.blocks:
                if isinstance(block, Text):
                    parts.append(_escaped(block.text))
                elif isinstance(block, Code):
                    parts.append("    " + block.text.replace("\n", "\n    "))
                elif isinstance(block, Table):
                    parts += [_escaped(block.caption), block.markdown()]
                else:
                    ending = "svg" if isinstance(block, Picture) else "jpg"
                    parts.append(f"![{_escaped(block.caption)}](figures/{block.name}.{ending})")
                    parts.append(f"*{_escaped(block.caption)}*")
                if isinstance(block, Gallery):
                    parts.append("\n".join(f"1. {_escaped(caption)}" for _, caption in block.tiles))
        parts += ["---", _escaped(self.footer)]
        return "\n\n".join(part for part in parts if part) + "\n"


def slug(text: str) -> str:
    """The text as the name of a file or of an anchor: small letters, digits and hyphens."""
    return re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-")


def _escaped(text: str) -> str:
    """Text that Markdown shows as it stands, on one line, also inside a table."""
    return re.sub(r"([\\`*_|\[\]#])", r"\\\1", html.escape(" ".join(str(text).split()), quote=False))


def _uri(kind: str, data: bytes) -> str:
    return f"data:image/{kind};base64,{base64.b64encode(data).decode()}"


def _photo(image: np.ndarray) -> str:
    """A photo as a data URI, small enough for a page that holds dozens."""
    photo = Image.fromarray(image)
    photo.thumbnail((240, 240))
    stream = io.BytesIO()
    photo.save(stream, format="JPEG", quality=88)
    return _uri("jpeg", stream.getvalue())
