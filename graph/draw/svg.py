"""Write boxes and lines as a standalone SVG."""

import math
import unicodedata
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from xml.sax.saxutils import escape

from cachegraph.common.printable import printable
from cachegraph.errors import InputError

from .layout import LayeredLayout, Size, arrange

__all__ = ["Box", "Line", "draw"]

MAX_BOXES = 400
MAX_LINES = 1500
MARGIN = 24
LANE = 30.0  # height per back line
LETTER = 7.3  # average width of a letter at 13 px
PORT = 9.0  # distance between lines that end at one side of a box

STYLE = """
.ground{fill:#ffffff}.box{fill:#f6f8fa;stroke:#8c959f;stroke-width:1.2}.output{stroke:#1a7f37;stroke-width:2.5}
text{font-family:system-ui,-apple-system,"Segoe UI",Helvetica,Arial,sans-serif;font-size:13px;fill:#1f2328}
.name{font-weight:600}.title{font-weight:600;font-size:15px}.small{font-size:11.5px;fill:#59636e}
.mark{font-size:11.5px;font-weight:600;fill:#1a7f37}
.label{font-size:11.5px;stroke:#ffffff;stroke-width:4px;stroke-linejoin:round;paint-order:stroke}
.line{fill:none;stroke:#6e7781;stroke-width:1.5}.cache{stroke:#0969da;stroke-width:3}
.both{stroke:#8250df;stroke-width:5}.core{fill:none;stroke:#ffffff;stroke-width:1.6}
.auto{stroke:#0969da;stroke-width:2;stroke-dasharray:7 4}
.tip-text{fill:#6e7781}.tip-cache,.tip-auto{fill:#0969da}.tip-both{fill:#8250df}
.label-cache,.label-auto{fill:#0550ae}.label-both{fill:#6639ba}
.finished{fill:#dafbe1;stroke:#1a7f37}.failed{fill:#ffebe9;stroke:#cf222e}.running{fill:#ddf4ff;stroke:#0969da}
.paused{fill:#fff8c5;stroke:#9a6700}.cancelled,.skipped,.not_started{stroke-dasharray:5 4}
.none{stroke:#8c959f;stroke-dasharray:2 4}.tip-none{fill:#8c959f}.fell{stroke:#bc4c00}.label-fell{fill:#bc4c00}
.drops{stroke:#bc4c00;stroke-dasharray:3 5}
@media (prefers-color-scheme:dark){
.ground{fill:#0d1117}.box{fill:#161b22;stroke:#656c76}.output{stroke:#3fb950}text{fill:#e6edf3}.small{fill:#9198a1}
.mark{fill:#3fb950}.label{stroke:#0d1117}.line{stroke:#9198a1}.core{stroke:#0d1117}
.cache,.auto{stroke:#4493f8}.both{stroke:#ab7df8}.tip-text{fill:#9198a1}.tip-cache,.tip-auto{fill:#4493f8}
.finished{fill:#12261e;stroke:#3fb950}.failed{fill:#301b1e;stroke:#f85149}.running{fill:#10233c;stroke:#4493f8}
.paused{fill:#272115;stroke:#d29922}.fell,.drops{stroke:#db6d28}.label-fell{fill:#f0883e}
.tip-both{fill:#ab7df8}.label-cache,.label-auto{fill:#79c0ff}.label-both{fill:#d2a8ff}}
"""
MEANINGS = {
    "text": "text",
    "cache": "KV cache",
    "both": "text and cache",
    "auto": "cache where it can, else text",
    "drops": "something is lost here",
}


@dataclass(frozen=True)
class Box:
    """One agent as drawn."""

    name: str
    model: str
    reads: tuple[str, ...]
    is_output: bool
    status: str = ""  # in a run: determines the colour
    notes: tuple[str, ...] = ()  # conditions and outcomes of its turns
    error: str = ""

    @property
    def rows(self) -> list[tuple[str, str]]:
        """Texts with their CSS classes, from the top."""
        rows = [("name", _clip(self.name, 26)), ("small", _clip(self.model, 30))]
        rows += [("small", _clip(note, 40)) for note in self.notes]
        return [*rows, ("small", _clip(f"reads {', '.join(self.reads)}", 30))] if self.reads else rows

    @property
    def size(self) -> tuple[float, float]:
        wide = max(_width(text) * (1.0 if kind == "name" else 0.9) for kind, text in self.rows)
        return max(wide + 28, 110), 18.0 * len(self.rows) + 18


@dataclass(frozen=True)
class Line:
    """One edge as drawn."""

    sender: str
    receiver: str
    channel: str
    label: str
    fell: str = ""  # in a run: why the edge fell back
    leads_back: bool = False  # drawn below the boxes
    may_be_skipped: bool = False
    drops: str = ""  # what this edge loses


def draw(
    title: str, description: str, generations: Sequence[Sequence[str]], boxes: Mapping[str, Box], lines: Sequence[Line]
) -> str:
    """Draw the SVG. Raises InputError for a graph too large to draw."""
    if len(boxes) > MAX_BOXES or len(lines) > MAX_LINES:
        raise InputError(f"{len(boxes)} agents and {len(lines)} edges don't fit a picture; use the text format")
    return _Canvas(title, description, generations, boxes, lines).svg()


class _Canvas:
    def __init__(
        self,
        title: str,
        description: str,
        generations: Sequence[Sequence[str]],
        boxes: Mapping[str, Box],
        lines: Sequence[Line],
    ):
        self.title, self.description, self.boxes = title, description, boxes
        self.lines = [line for line in lines if not line.leads_back]
        self.back = [line for line in lines if line.leads_back]
        lines = self.lines
        # Left to right; top to bottom only if that would get too wide.
        self.down = len(generations) > 6 and max(map(len, generations)) <= 3
        level = {name: number for number, names in enumerate(generations) for name in names}
        gaps = [self._gap([line for line in lines if level[line.receiver] - 1 == number]) for number in level.values()]
        by_level = dict(zip(level.values(), gaps, strict=True))
        sizes = {name: Size(*(box.size[::-1] if self.down else box.size)) for name, box in boxes.items()}
        pairs = [(line.sender, line.receiver) for line in lines]
        self.layout: LayeredLayout = arrange(generations, pairs, sizes, [by_level[n] for n in range(len(generations))])
        self.ports = self._ports()
        self.head = 58 if description else 40
        self.parts: list[str] = []

    def _gap(self, lines: list[Line]) -> float:
        if self.down:
            return 64 if any(line.label for line in lines) else 44
        return max([64.0, *(_width(_clip(line.label, 34)) * 0.9 + 44 for line in lines if line.label)])

    def _ports(self) -> dict[tuple[str, str, str], float]:
        """Position line ends along each side of a box, ordered by their other ends to reduce crossings."""
        sides: dict[tuple[str, str], list[tuple[float, str]]] = {}
        for line in self.lines:
            route = self.layout.routes[line.sender, line.receiver]
            out = route[0][1] if route else self.layout.boxes[line.receiver][1]
            back = route[-1][1] if route else self.layout.boxes[line.sender][1]
            sides.setdefault((line.sender, "out"), []).append((out, line.receiver))
            sides.setdefault((line.receiver, "in"), []).append((back, line.sender))
        ports = {}
        for (name, side), others in sides.items():
            room = self.boxes[name].size[0 if self.down else 1] - 16
            step = min(PORT if not self.down else 2 * PORT, room / max(len(others) - 1, 1))
            for number, (_, other) in enumerate(sorted(others)):
                ports[name, side, other] = (number - (len(others) - 1) / 2) * step
        return ports

    def svg(self) -> str:
        for line in self.lines:
            self._line(line)
        for number, line in enumerate(self.back):
            self._back_line(number, line)
        for name, box in self.boxes.items():
            self._box(name, box)
        self._labels()
        across, along = self.layout.across + LANE * len(self.back) + (8 if self.back else 0), self.layout.along
        width, height = (across, along) if self.down else (along, across)
        output_room = 0 if self.down else 64
        legend = self._legend(height + self.head + MARGIN)
        longest = max(_width(self.title) * 1.15, _width(_clip(self.description, 90)) * 0.9, legend[1])
        wide = math.ceil(max(width + output_room, longest) + 2 * MARGIN)
        tall = math.ceil(height + self.head + 2 * MARGIN + (28 if legend[0] else 0) + (22 if self.down else 0))
        size = f'width="{wide}" height="{tall}"'
        head = [
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {wide} {tall}" {size} role="img">',
            f"<title>{_xml(self.title)}</title>",
            f"<style>{STYLE}</style>",
            f'<rect class="ground" width="{wide}" height="{tall}"/>',
            f'<text class="title" x="{MARGIN}" y="30">{_xml(self.title)}</text>',
        ]
        if self.description:
            head.append(f'<text class="small" x="{MARGIN}" y="48">{_xml(_clip(self.description, 90))}</text>')
        return "\n".join([*head, *self.parts, *legend[0], "</svg>"]) + "\n"

    def _at(self, along: float, across: float) -> tuple[float, float]:
        x, y = (across, along) if self.down else (along, across)
        return round(x + MARGIN, 1), round(y + MARGIN / 2 + self.head, 1)

    def _ends(self, line: Line) -> list[tuple[float, float]]:
        """Return the points of a line as (along, across)."""
        (start, left), (end, right) = self.layout.boxes[line.sender], self.layout.boxes[line.receiver]
        half = 1 if self.down else 0
        start += self.boxes[line.sender].size[half] / 2
        end -= self.boxes[line.receiver].size[half] / 2 + 9
        first = (start, left + self.ports[line.sender, "out", line.receiver])
        last = (end, right + self.ports[line.receiver, "in", line.sender])
        return [first, *self.layout.routes[line.sender, line.receiver], last]

    def _line(self, line: Line) -> None:
        points = self._ends(line)
        path = "M{} {}".format(*self._at(*points[0]))
        for (along, across), (to_along, to_across) in pairwise(points):
            if across == to_across:
                path += " L{} {}".format(*self._at(to_along, to_across))
                continue
            middle = (along + to_along) / 2
            corners = [self._at(middle, across), self._at(middle, to_across), self._at(to_along, to_across)]
            path += " C" + " ".join(f"{x} {y}" for x, y in corners)
        dashes = ' stroke-dasharray="2 4"' if line.may_be_skipped and line.channel != "auto" else ""
        said = line.fell or line.drops
        why = f"><title>{_xml(said)}</title></path>" if said else "/>"
        kind = f"line {line.channel}{' fell' if line.fell else ''}{' drops' if line.drops else ''}"
        self.parts.append(f'<path class="{kind}" d="{path}"{dashes}{why}')
        if line.channel == "both":
            self.parts.append(f'<path class="core" d="{path}"/>')
        tip, across = points[-1]
        corners = [self._at(tip + 9, across), self._at(tip - 1, across - 5), self._at(tip - 1, across + 5)]
        self.parts.append(f'<polygon class="tip-{line.channel}" points="{" ".join(f"{x},{y}" for x, y in corners)}"/>')

    def _back_line(self, number: int, line: Line) -> None:
        """Draw a back line from the sender's lower side along a separate lane up to the receiver."""
        lane = self.layout.across + 8 + LANE * number + 8
        half = 0 if self.down else 1
        (start, left), (end, right) = self.layout.boxes[line.sender], self.layout.boxes[line.receiver]
        shift = 14 + 7 * number
        start, end = start + shift, end - shift
        left, right = left + self.boxes[line.sender].size[half] / 2, right + self.boxes[line.receiver].size[half] / 2
        corners = [(start, left), (start, lane), (end, lane), (end, right + 9)]
        path = " L".join("{} {}".format(*self._at(*corner)) for corner in corners)
        why = f"><title>{_xml(line.drops)}</title></path>" if line.drops else "/>"
        self.parts.append(f'<path class="line {line.channel}{" drops" if line.drops else ""}" d="M{path}"{why}')
        tip = [self._at(end, right), self._at(end - 5, right + 10), self._at(end + 5, right + 10)]
        self.parts.append(f'<polygon class="tip-{line.channel}" points="{" ".join(f"{x},{y}" for x, y in tip)}"/>')
        x, y = self._at((start + end) / 2, lane)
        anchor = "start" if self.down else "middle"
        style = f"label label-{line.channel}"
        self.parts.append(_text(style, x + (6 if self.down else 0), y - 5, _clip(line.label, 40), anchor))

    def _box(self, name: str, box: Box) -> None:
        x, y = self._at(*self.layout.boxes[name])
        wide, tall = box.size
        kind = " ".join(filter(None, ["box", box.status, "output" if box.is_output else ""]))
        left, top = round(x - wide / 2, 1), round(y - tall / 2, 1)
        title = " | ".join(filter(None, [box.name, box.model, *box.reads, *box.notes, box.error]))
        self.parts.append(f"<g><title>{_xml(title)}</title>")
        self.parts.append(
            f'<rect class="{kind}" x="{left}" y="{top}" width="{round(wide, 1)}" height="{tall}" rx="8"/>'
        )
        for number, (style, text) in enumerate(box.rows):
            self.parts.append(_text(style, x, top + 22 + 18 * number, text))
        self.parts.append("</g>")
        if box.is_output:
            place = (x, y + tall / 2 + 17, "middle") if self.down else (x + wide / 2 + 8, y + 4, "start")
            if any(line.sender == name for line in self.lines):  # its lines start there
                place = (x, y - tall / 2 - 6, "middle")
            self.parts.append(_text("mark", place[0], place[1], "output", place[2]))

    def _labels(self) -> None:
        """Place each label beside the last segment of its line, without overlaps."""
        taken: list[tuple[float, float, float]] = []
        for line in self.lines:
            if not line.label:
                continue
            (along, across), (to_along, to_across) = self._ends(line)[-2:]
            x, y = self._at((along + to_along) / 2, (across + to_across) / 2)
            text = _clip(line.label, 34)
            half = _width(text) * 0.45
            y -= 0 if self.down or across != to_across else 6
            while any(abs(x - other) < half + wide and abs(y - height) < 14 for other, height, wide in taken):
                y += 14
            taken.append((x, y, half))
            self.parts.append(_text(f"label label-{'fell' if line.fell else line.channel}", x, y, text))

    def _legend(self, y: float) -> tuple[list[str], float]:
        drawn = {line.channel for line in (*self.lines, *self.back)}
        drawn |= {"drops"} if any(line.drops for line in (*self.lines, *self.back)) else set()
        channels = [channel for channel in MEANINGS if channel in drawn]
        if not channels or channels == ["text"]:
            return [], 0.0
        parts, x, y = [], float(MARGIN), y + 22 + (22 if self.down else 0)
        for channel in channels:
            parts.append(f'<path class="line {channel}" d="M{x:.1f} {y - 4} L{x + 30:.1f} {y - 4}"/>')
            if channel == "both":
                parts.append(f'<path class="core" d="M{x:.1f} {y - 4} L{x + 30:.1f} {y - 4}"/>')
            parts.append(f'<text class="small" x="{x + 38:.1f}" y="{y}">{MEANINGS[channel]}</text>')
            x += 38 + _width(MEANINGS[channel]) * 0.9 + 22
        return parts, x - MARGIN


def _width(text: str) -> float:
    return sum(LETTER * (1.8 if unicodedata.east_asian_width(letter) in "WF" else 1.0) for letter in text)


def _clip(text: str, letters: int) -> str:
    return text if len(text) <= letters else f"{text[: letters - 1]}…"


def _text(style: str, x: float, y: float, text: str, anchor: str = "middle") -> str:
    return f'<text class="{style}" x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{_xml(text)}</text>'


def _xml(text: str) -> str:
    """Escape text and remove characters that XML forbids."""
    return escape(printable(text), {'"': "&quot;"})
