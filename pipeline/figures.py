"""A loss curve as one small SVG file that any browser shows: no plotting library, no script, no font to fetch."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

WIDTH, HEIGHT = 720, 400
_LEFT, _RIGHT, _TOP, _BOTTOM = 62, 20, 46, 52
#: Colours that people with any common colour vision tell apart, on white (Okabe and Ito, 2008).
COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7")


@dataclass(frozen=True)
class Line:
    """One curve: its name in the legend and its ``(step, loss)`` points. ``dots`` marks each point."""

    name: str
    points: Sequence[tuple[float, float]]
    dots: bool = False


@dataclass(frozen=True)
class Level:
    """A dashed horizontal line at a loss that means something."""

    name: str
    value: float


def ticks(low: float, high: float, most: int = 7) -> list[float]:
    """At most ``most`` round numbers (1, 2 or 5 times a power of ten apart) that lie in ``low`` to ``high``."""
    power = 10.0 ** math.floor(math.log10(max(high - low, 1e-9) / most))
    numbers = range(0)
    for step in (power * each for each in (1, 2, 5, 10, 20)):
        numbers = range(math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9) + 1)
        if len(numbers) <= most:
            break
    return [round(number * step, 10) for number in numbers]


def loss_curve(title: str, x_label: str, y_label: str, lines: Sequence[Line], levels: Sequence[Level] = ()) -> str:
    """The SVG document. Points that are not finite are left out; no points at all give empty axes."""
    kept = [Line(each.name, [p for p in each.points if math.isfinite(p[1])], each.dots) for each in lines]
    steps = [x for each in kept for x, _loss in each.points] or [0.0, 1.0]
    losses = [y for each in kept for _step, y in each.points] + [each.value for each in levels] or [0.0, 1.0]
    right = max(*steps, 1.0) if len(steps) > 1 else max(steps[0], 1.0)
    margin = (max(losses) - min(losses)) * 0.06 or 0.5
    bottom, top = min(losses) - margin, max(losses) + margin

    def x_of(step: float) -> float:
        return _LEFT + (WIDTH - _LEFT - _RIGHT) * step / right

    def y_of(loss: float) -> float:
        return _TOP + (HEIGHT - _TOP - _BOTTOM) * (top - loss) / (top - bottom)

    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" width="{WIDTH}" height="{HEIGHT}" '
        f'font-family="sans-serif" font-size="12" role="img" aria-label="{escape(title)}">',
        f"<title>{escape(title)}</title>",
        f'<rect width="{WIDTH}" height="{HEIGHT}" fill="#ffffff"/>',
    ]
    floor, edge = HEIGHT - _BOTTOM, WIDTH - _RIGHT
    for loss in ticks(bottom, top):
        y = y_of(loss)
        parts.append(f'<path d="M{_LEFT} {y:.1f}H{edge}" stroke="#e4e4e4"/>')
        parts.append(_text(_LEFT - 8, y + 4, f"{loss:g}", "end"))
    for step in ticks(0, right):
        x = x_of(step)
        parts.append(f'<path d="M{x:.1f} {floor}v5" stroke="#444444"/>')
        parts.append(_text(x, floor + 19, f"{step:g}", "middle"))
    parts.append(f'<path d="M{_LEFT} {_TOP}V{floor}H{edge}" fill="none" stroke="#444444"/>')
    parts.append(_text((_LEFT + edge) / 2, HEIGHT - 10, x_label, "middle"))
    middle = (_TOP + floor) / 2
    parts.append(_text(16, middle, y_label, "middle", f' transform="rotate(-90 16 {middle:.1f})"'))
    parts.append(_text(_LEFT, 20, title, "start", ' font-size="14" font-weight="bold"'))

    legend: list[tuple[str, str, str]] = []
    for colour, line in zip(COLOURS, kept):
        path = " ".join(f"{x_of(step):.1f},{y_of(loss):.1f}" for step, loss in line.points)
        parts.append(f'<polyline points="{path}" fill="none" stroke="{colour}" stroke-width="1.8"/>')
        if line.dots or len(line.points) == 1:
            parts += [
                f'<circle cx="{x_of(step):.1f}" cy="{y_of(loss):.1f}" r="2.8" fill="{colour}"/>'
                for step, loss in line.points
            ]
        legend.append((line.name, colour, ""))
    for colour, level in zip(COLOURS[len(kept) :], levels):
        y = y_of(level.value)
        parts.append(f'<path d="M{_LEFT} {y:.1f}H{edge}" stroke="{colour}" stroke-width="1.4" stroke-dasharray="6 4"/>')
        legend.append((f"{level.name} ({level.value:.2f})", colour, ' stroke-dasharray="6 4"'))
    for row, (name, colour, dash) in enumerate(legend):
        y = _TOP + 14 + 18 * row
        parts.append(f'<path d="M{edge - 24} {y}h24" stroke="{colour}" stroke-width="2"{dash}/>')
        # A white edge keeps the name readable where a curve passes behind it.
        white = ' stroke="#ffffff" stroke-width="3" paint-order="stroke"'
        parts.append(_text(edge - 30, y + 4, name, "end", white))
    return "\n".join([*parts, "</svg>"]) + "\n"


def _text(x: float, y: float, text: str, anchor: str, more: str = "") -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" fill="#222222"{more}>{escape(text)}</text>'
