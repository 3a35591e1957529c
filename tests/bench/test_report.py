"""The report shows every row that was measured, and needs nothing but itself."""

import xml.etree.ElementTree as ET

import pytest

from tests.bench import report

ROWS = [
    {
        "bench": "read <b>",
        "unit": "requests/s",
        "bar": "≥ 1.20",
        "ours": 1500.0,
        "ours_spread": 0.2,
        "peer": 1000.0,
        "peer_spread": 0.1,
        "rounds": 3,
        "ratio": 1.5,
        "samples": {"ours": [1400.0, 1500.0, 1700.0], "peer": [950.0, 1000.0, 1050.0]},
    },
    {
        "bench": "startup",
        "unit": "s",
        "bar": "≤ 10 s",
        "ours": 5.0,
        "ours_spread": 0.0,
        "peer": None,
        "peer_spread": None,
        "rounds": 1,
        "ratio": None,
        "samples": {"ours": [5.0], "peer": []},
    },
]


def test_the_table_has_a_line_for_each_benchmark() -> None:
    lines = report.markdown(ROWS).splitlines()
    assert "| read <b> | 1,500.0 ±10% | 1,000.0 ±5% | 1.50 | ≥ 1.20 | requests/s | 3 |" in lines
    assert "| startup | 5.0 ±0% |  |  | ≤ 10 s | s | 1 |" in lines


def test_the_page_escapes_names_draws_charts_and_loads_nothing() -> None:
    page = report.html(ROWS)
    assert "read &lt;b&gt;" in page
    assert "<b>" not in page
    assert "src=" not in page
    assert "http" not in page


def test_an_overload_shows_what_was_served_and_refused_of_each_load() -> None:
    points = [
        {"load": 1.0, "good": 1000.0, "refused": 0.0, "p95": 40.0},
        {"load": 2.0, "good": 900.0, "refused": 1100.0, "p95": 120.4},
    ]
    drawn = ET.fromstring(report.curve(points))  # noqa: S314  ours
    widths = [float(bar.attrib["width"]) for bar in drawn.findall("rect")]
    assert widths[0] / widths[2] == pytest.approx(1000 / 900, abs=0.01)
    assert widths[3] / widths[2] == pytest.approx(1100 / 900, abs=0.01)
    assert [text.text for text in drawn.findall("text")] == ["100%", "p95 40 ms", "200%", "p95 120 ms"]
    assert report.curve([]) == ""


def test_the_bars_are_as_long_as_the_figures() -> None:
    bars = ET.fromstring(report.chart(ROWS[0])).findall("rect")  # noqa: S314  ours
    ours, peer = (float(bar.attrib["width"]) for bar in bars)
    assert ours / peer == pytest.approx(1.5, abs=0.01)
