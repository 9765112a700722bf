"""Labels beside points, so that they do not lie on each other."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

#: How far from its point a label may be, in points of type, and into how many directions.
DISTANCES, DIRECTIONS = (6, 11, 18, 28, 40, 55, 75, 100), 16
#: From so far on a line leads to the label.
LEADS = 18
#: What a label costs where it lies: on another label or outside the axes, on a point, on a line (and where
#: the line that leads to it crosses a label or point); for each unit of its distance.
ON_LABEL, ON_POINT, ON_LINE, AWAY = 1000.0, 200.0, 15.0, 1.0
FONT = 7

Spot = tuple[float, float]
Box = tuple[float, float, float, float]  # left, bottom, right, top, in pixels


@dataclass(frozen=True)
class Label:
    """A text, the point it names in the units of the axes, and its colour."""

    text: str
    x: float
    y: float
    colour: str


def place_labels(
    canvas: Any, axes: Any, labels: Sequence[Label], lines: Sequence[tuple[Spot, Spot]] = ()
) -> list[Any]:
    """Writes each label where it covers least: other labels, points, and then `lines`, pairs of ends. A line
    leads from a distant label to its point. Limits and scales of the axes must be final. The same labels are
    always placed alike. Returns the texts."""
    canvas.draw_without_rendering()  # the layout: before it, a point has no place
    spots = [_pixels(axes, (label.x, label.y)) for label in labels]
    along = [spot for start, end in lines for spot in _between(_pixels(axes, start), _pixels(axes, end))]
    inside = axes.get_window_extent()
    frame = (inside.x0, inside.y0, inside.x1, inside.y1)
    page, texts = _Page(canvas.dpi / 72, frame, spots, along), list[Any]()
    # The most crowded first: those with room find another place.
    for i in sorted(range(len(labels)), key=lambda i: (-_crowd(spots, i, 60 * page.unit), spots[i])):
        label = labels[i]
        look: Any = {"textcoords": "offset points", "fontsize": FONT, "color": label.colour}
        text = axes.annotate(label.text, (label.x, label.y), (0, 0), **look)
        extent = text.get_window_extent()
        box, away = page.take(i, (extent.width, extent.height))
        text.set_position(((box[0] - spots[i][0]) / page.unit, (box[1] - spots[i][1]) / page.unit))
        texts.append(text)
        if away > LEADS:
            ends = axes.transData.inverted().transform([spots[i], _nearest(spots[i], box)])
            axes.plot(*ends.T, color=label.colour, linewidth=0.5, alpha=0.6, zorder=1)
    return texts


@dataclass
class _Page:
    """What lies on the axes, in pixels: the points, spots on lines, and the labels so far. unit: pixels of a
    point of type."""

    unit: float
    frame: Box
    spots: Sequence[Spot]
    along: list[Spot]
    taken: list[Box] = field(default_factory=list)

    def take(self, i: int, size: Spot) -> tuple[Box, float]:
        """The best box for the text of point i, which is taken from then on, and its distance from the
        point."""
        lines = np.array(self.along or np.empty((0, 2)))
        box, away = min(self._boxes(self.spots[i], size), key=lambda at: self._cost(i, at[0], at[1], lines))
        self.taken.append(box)
        if away > LEADS:
            self.along += _between(self.spots[i], _nearest(self.spots[i], box))
        return box, away

    def _boxes(self, spot: Spot, size: Spot) -> list[tuple[Box, float]]:
        """Where a text of this size may lie, and how far from its point."""
        boxes = []
        for distance in DISTANCES:
            for k in range(DIRECTIONS):
                across, up = (f(2 * math.pi * k / DIRECTIONS) for f in (math.cos, math.sin))
                left = spot[0] + across * (distance * self.unit + size[0] / 2) - size[0] / 2
                low = spot[1] + up * (distance * self.unit + size[1] / 2) - size[1] / 2
                boxes.append(((left, low, left + size[0], low + size[1]), float(distance)))
        return boxes

    def _cost(self, i: int, box: Box, away: float, lines: Any) -> float:
        left, low, right, top = self.frame
        outside = box[0] < left or box[1] < low or box[2] > right or box[3] > top
        labels = sum(_meet(box, other, 1.5 * self.unit) for other in self.taken)
        points = sum(_holds(box, spot, 4 * self.unit) for spot in self.spots)
        pad = 1.0 * self.unit
        inside = (lines > np.array(box[:2]) - pad).all(1) & (lines < np.array(box[2:]) + pad).all(1)
        crossed = 0
        if away > LEADS:
            lead = _between(self.spots[i], _nearest(self.spots[i], box))[2:]
            crossed = sum(any(_holds(other, spot, pad) for spot in lead) for other in self.taken)
            others = [spot for j, spot in enumerate(self.spots) if j != i]
            crossed += sum(any(math.dist(one, spot) < 3 * self.unit for spot in lead) for one in others)
        covered = min(float(inside.sum()), 4.0) + 2 * crossed
        return ON_LABEL * (labels + outside) + ON_POINT * points + ON_LINE * covered + AWAY * away


def _pixels(axes: Any, spot: Spot) -> Spot:
    x, y = axes.transData.transform(spot)
    return float(x), float(y)


def _between(start: Spot, end: Spot) -> list[Spot]:
    """Spots on a line, some four pixels apart."""
    count = min(int(math.dist(start, end) // 4) + 2, 2000)
    return [
        (start[0] + (end[0] - start[0]) * t, start[1] + (end[1] - start[1]) * t)
        for t in np.linspace(0, 1, count)
    ]


def _crowd(spots: Sequence[Spot], i: int, near: float) -> int:
    return sum(math.dist(spots[i], spot) < near for spot in spots)


def _nearest(spot: Spot, box: Box) -> Spot:
    """The place of a box that is nearest to a spot."""
    return min(max(spot[0], box[0]), box[2]), min(max(spot[1], box[1]), box[3])


def _meet(one: Box, other: Box, pad: float) -> bool:
    apart = one[0] > other[2] + pad or other[0] > one[2] + pad
    return not (apart or one[1] > other[3] + pad or other[1] > one[3] + pad)


def _holds(box: Box, spot: Spot, pad: float) -> bool:
    return box[0] - pad < spot[0] < box[2] + pad and box[1] - pad < spot[1] < box[3] + pad
