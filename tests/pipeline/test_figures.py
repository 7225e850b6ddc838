"""The loss curve: well-formed, inside its frame, with everything named."""

from __future__ import annotations

import math
import re
import xml.etree.ElementTree as ET

import pytest

from pipeline.figures import HEIGHT, WIDTH, Level, Line, loss_curve, ticks

NAMESPACE = "{http://www.w3.org/2000/svg}"


@pytest.mark.parametrize(
    ("low", "high", "expected"),
    [
        (0, 300, [0, 50, 100, 150, 200, 250, 300]),
        (4.4, 7.7, [4.5, 5, 5.5, 6, 6.5, 7, 7.5]),
        (0, 1, [0, 0.2, 0.4, 0.6, 0.8, 1]),
        (0, 400_000, [0, 100_000, 200_000, 300_000, 400_000]),
    ],
)
def test_ticks_are_round_numbers(low: float, high: float, expected: list[float]) -> None:
    assert ticks(low, high) == expected


def test_all_curves_and_levels_are_drawn_named_and_inside() -> None:
    train = [(step, 7.6 - math.log(step) / 2) for step in range(1, 300, 10)]
    text = loss_curve(
        "Loss <1>", "step", "nats", [Line("training", train), Line("validation", train[::5], dots=True)],
        [Level("word & frequencies", 5.9)],
    )  # fmt: skip
    root = ET.fromstring(text)  # noqa: S314  our own text
    words = [each.text for each in root.iter(f"{NAMESPACE}text")]
    assert {"Loss <1>", "step", "nats", "training", "validation", "word & frequencies (5.90)", "5.5", "200"} <= set(
        words
    )
    lines = list(root.iter(f"{NAMESPACE}polyline"))
    assert [len(each.attrib["points"].split()) for each in lines] == [30, 6]
    for x, y in re.findall(r"([\d.]+),([\d.]+)", " ".join(each.attrib["points"] for each in lines)):
        assert 0 < float(x) < WIDTH
        assert 0 < float(y) < HEIGHT
    heights = [float(point.split(",")[1]) for point in lines[0].attrib["points"].split()]
    assert heights == sorted(heights)  # a falling loss goes down the page


@pytest.mark.parametrize("points", [[], [(1, 3.0)], [(1, 3.0), (2, 3.0)], [(1, math.nan), (2, 3.0), (3, math.inf)]])
def test_little_to_draw_is_still_a_figure(points: list[tuple[float, float]]) -> None:
    text = loss_curve("t", "x", "y", [Line("training", points)])
    ET.fromstring(text)  # noqa: S314
    assert "nan" not in text
    assert "inf" not in text
