"""A template's nodes on the page: columns, sizes, and wires that go round nodes rather than behind them."""

from __future__ import annotations

from collections.abc import Collection, Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

Info = Mapping[str, Any]

WIDTH, BETWEEN, TITLE, LANES = 280, 56, 30, 60
"""Of a column; between columns; of a node's title, which stands above its position; and the room for wires between two nodes."""

SOCKET, WIDGET, STEP = 20, 24, 14
"""Height of a socket's and a widget's row; between two wires side by side."""

TOGETHER = 150
"""Wires of one source that want to cross a column at heights no further apart share one."""

WIDTHS = {
    "SafetyDirection": 320,
    "SafetyDirectionInspect": 320,
    "SafetyDirectionLoad": 320,
    "SafetyDirectionSweep": 320,
}
SHOWS = {
    "SafetyDirection": 210,
    "SafetyDirectionLoad": 150,
    "SafetyDirectionApply": 64,
    "SafetyDirectionCLIP": 64,
    "SafetyDirectionGuard": 64,
    "SafetyDirectionInspect": 96,
    "SafetyDirectionSweep": 64,
}
"""How much higher than its sockets and widgets a node is before it runs, as the page draws it."""

GROWS = {"SafetyDirectionInspect": 340, "SafetyDirection": 70, "SafetyDirectionAlign": 70}
"""And how much it grows when it has run."""

TEXTS = {"CLIPTextEncode": "text", "PrimitiveStringMultiline": "value"}
"""Nodes that hold a prompt, and where; it needs no room where it comes through a link."""

WINDOW = (1440, 900)
"""In which a template shows whole, and with its words: ComfyUI draws none where it is scaled below 0.57, and a template that it
opens fills three quarters of the window. Its left and top 80 and 150 pixels are the page's own."""


class Box(NamedTuple):
    """Where a node stands, with its title."""

    left: float
    top: float
    right: float
    bottom: float


@dataclass
class Layout:
    """Columns from left to right, each filled from its top."""

    tops: Mapping[int, int]
    widths: dict[int, int] = field(default_factory=dict)
    boxes: list[Box] = field(default_factory=list)
    _next: dict[int, float] = field(default_factory=dict)
    _taken: dict[tuple[int, int], int] = field(default_factory=dict)
    _heights: dict[tuple[Hashable, int, float], list[float]] = field(default_factory=dict)

    def left(self, column: int) -> int:
        """Where a column begins."""
        return sum(self.widths.get(i, WIDTH) + BETWEEN for i in range(column))

    def place(self, column: int, width: int, height: int, grows: int = 0) -> list[float]:
        """Room for one more node; gives its position."""
        top = self._next.get(column, self.tops.get(column, 0))
        left = self.left(column)
        self.boxes.append(Box(left, top - TITLE, left + width, top + height + grows))
        self._next[column] = top + height + grows + LANES + TITLE
        return [left, top]

    def way(self, source: Hashable, start: list[float], end: list[float]) -> Iterator[tuple[list[float], list[float]]]:
        """Where a wire goes in and out of each column that it crosses, so that no node stands before it. Wires of one source
        go together as far as they can."""
        at = start
        if end[0] <= start[0]:  # down to a node below: out at the right, and back above that node
            height = end[1] - TITLE - SOCKET - STEP
            yield [start[0] + 16, height], [end[0] - 16, height]
            return
        for column in self._between(start[0], end[0]):
            left, right = self.left(column), self.left(column) + self.widths.get(column, WIDTH)
            share = ((left + right) / 2 - at[0]) / max(end[0] - at[0], 1)
            wanted = at[1] + share * (end[1] - at[1])
            taken = self._heights.setdefault((source, column, at[1]), [])
            height = next((one for one in taken if abs(one - wanted) < TOGETHER), None)
            if height is None:
                taken.append(height := self._lane(column, left, right, wanted))
            at = [right + 16, height]
            yield [left - 16, height], at

    def _between(self, start: float, end: float) -> Iterator[int]:
        column = 0
        while self.left(column) < end - BETWEEN:
            if self.left(column) > start:
                yield column
            column += 1

    def _lane(self, column: int, left: float, right: float, wanted: float) -> float:
        """The free height nearest to the wanted one, between the nodes that stand from left to right."""
        standing = sorted((b.top, b.bottom) for b in self.boxes if b.left < right and b.right > left)
        edges = [standing[0][0] - LANES, *(bottom for _, bottom in standing)] if standing else [wanted]
        lanes = [edge + STEP + STEP * self._taken.get((column, i), 0) for i, edge in enumerate(edges)]
        full = [self._taken.get((column, i), 0) >= LANES // STEP - 1 for i in range(len(lanes))]
        best = min(range(len(lanes)), key=lambda i: (full[i], abs(lanes[i] - wanted)))
        self._taken[column, best] = self._taken.get((column, best), 0) + 1
        return lanes[best]


def size_of(kind: str, sockets: int, outputs: int, widgets: int, linked: Collection[str]) -> list[int]:
    """A node's width and height as the page draws it before it runs.

    Args:
        widgets: how many values it holds.
        linked: the inputs that come through links.
    """
    text = TEXTS.get(kind)
    room = 0 if text is None else 34 if text in linked else 76
    height = 10 + SOCKET * max(sockets, outputs) + WIDGET * widgets + SHOWS.get(kind, 0) + room
    return [WIDTHS.get(kind, WIDTH), height]


def note_size(text: str, width: int) -> list[int]:
    """Of the note with this text."""
    return [width, 60 + sum(8 + 13 * (1 + len(line) * 6 // width) for line in text.splitlines() if line)]


def view(boxes: Sequence[Box]) -> dict[str, Any]:
    """Where the page looks when a template opens: at all of it, no larger than it is drawn."""
    left, top = min(box.left for box in boxes), min(box.top for box in boxes)
    width, height = max(box.right for box in boxes) - left, max(box.bottom for box in boxes) - top
    scale = min(1, (WINDOW[0] - 100) / width, (WINDOW[1] - 190) / height)
    return {"scale": round(scale, 3), "offset": [round(80 / scale - left), round(150 / scale - top)]}
