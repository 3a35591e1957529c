"""`make bench-report`: what the benchmarks found, as one page for people and one table for the docs.

    FORMAT=json make bench | python -m tests.bench.report PAGE.html TABLE.md

Reads lines of JSON. The page needs nothing but itself: its charts are SVG.
"""

import json
import os
import platform
import sys
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

from services.chassis.clock import now

Row = dict[str, Any]

WIDTH, BAR, GAP = 560, 18, 6
NOTES = (
    "Ours and the peer are measured in turn (A B A B); figures are medians of the rounds, ± half the spread.",
    "Ours is called through TLS 1.3, the edge and the mesh; peers on plain HTTP, at their own port (not `cached`).",
    "The load generator runs on the same machine. Figures of two runs do not compare; ratios may.",
)
STYLE = """
body { font: 16px/1.5 system-ui, sans-serif; max-width: 60rem; margin: 2rem auto; padding: 0 1rem; color: #1b1f24 }
table { border-collapse: collapse; width: 100% } td, th { text-align: right; padding: .3rem .6rem }
td:first-child, th:first-child { text-align: left } tr { border-bottom: 1px solid #d8dee4 }
.ours { fill: #2557a7 } .peer { fill: #b9c4d0 } .spread { stroke: #1b1f24 } svg text { font-size: 13px }
@media (prefers-color-scheme: dark) { body { background: #16191d; color: #e6e9ec } svg text { fill: #e6e9ec }
  .ours { fill: #6ea0ee } .peer { fill: #5b6672 } .spread { stroke: #e6e9ec } tr { border-color: #363c43 } }
"""


def main() -> int:
    page, table = Path(sys.argv[1]), Path(sys.argv[2])
    rows: list[Row] = [json.loads(line) for line in sys.stdin if line.startswith("{")]
    if not rows:
        print("There is nothing to report: no benchmark ran.", file=sys.stderr)
        return 1
    table.write_text(markdown(rows))
    page.parent.mkdir(parents=True, exist_ok=True)
    page.write_text(html(rows))
    print(f"{page}\n{table}")
    return 0


def markdown(rows: Sequence[Row]) -> str:
    lines = [
        "# Benchmarks",
        "",
        f"Written by `make bench-report` on {setting()}. `make bench` measures anew.",
        "",
        "| benchmark | ours | peer | ratio | bar | unit | rounds |",
        "| --- | ---: | ---: | ---: | --- | --- | ---: |",
        *("| " + " | ".join(cells(row)) + " |" for row in rows),
        "",
        *NOTES,
    ]
    return "\n".join(lines) + "\n"


def html(rows: Sequence[Row]) -> str:
    head = "".join(f"<th>{name}</th>" for name in ("benchmark", "ours", "peer", "ratio", "bar", "unit", "rounds"))
    body = "".join("<tr>" + "".join(f"<td>{escape(cell)}</td>" for cell in cells(row)) + "</tr>" for row in rows)
    charts = "".join(
        f"<h2>{escape(row['bench'])}</h2><p>{escape(row['unit'])}</p>{chart(row)}{curve(row.get('curve') or [])}"
        for row in rows
    )
    notes = "".join(f"<p>{escape(note)}</p>" for note in NOTES)
    return (
        '<!doctype html><html lang="en"><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width"><title>Nexus COS: benchmarks</title>'
        f"<style>{STYLE}</style><h1>Benchmarks</h1><p>On {escape(setting())}.</p>"
        f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>{notes}{charts}</html>\n"
    )


def cells(row: Row) -> list[str]:
    peer, ratio = row.get("peer"), row.get("ratio")
    return [
        row["bench"],
        f"{row['ours']:,.1f} ±{row['ours_spread'] / 2:.0%}",
        f"{peer:,.1f} ±{(row.get('peer_spread') or 0) / 2:.0%}" if peer else "",
        f"{ratio:.2f}" if ratio else "",
        row["bar"],
        row["unit"],
        str(row["rounds"]),
    ]


def chart(row: Row) -> str:
    """A bar for the median of each side, with a line from the lowest round to the highest."""
    sides = [(name, row["samples"].get(name, []), row[name]) for name in ("ours", "peer") if row.get(name)]
    longest = max(max([*samples, median]) for _, samples, median in sides)
    scale = (WIDTH - 160) / longest
    parts = []
    for place, (name, samples, median) in enumerate(sides):
        top = place * (BAR + GAP)
        low, high = min([*samples, median]) * scale + 50, max([*samples, median]) * scale + 50
        middle = top + BAR / 2
        parts.append(
            f'<text x="0" y="{top + 14}">{name}</text>'
            f'<rect class="{name}" x="50" y="{top}" width="{median * scale:.1f}" height="{BAR}"/>'
            f'<line class="spread" x1="{low:.1f}" x2="{high:.1f}" y1="{middle}" y2="{middle}"/>'
            f'<text x="{high + 8:.1f}" y="{top + 14}">{median:,.1f}</text>'
        )
    height = len(sides) * (BAR + GAP)
    label = ", ".join(f"{name} {median:,.1f}" for name, _, median in sides)
    return f'<svg role="img" aria-label="{label}" viewBox="0 0 {WIDTH} {height}" width="{WIDTH}">{"".join(parts)}</svg>'


def curve(points: Sequence[Mapping[str, float]]) -> str:
    """What was served and refused of each load, as stacked bars, with the p95 of what was served."""
    if not points:
        return ""
    scale = (WIDTH - 200) / max(point["good"] + point["refused"] for point in points)
    parts = []
    for place, point in enumerate(points):
        top, good, refused = place * (BAR + GAP), point["good"] * scale, point["refused"] * scale
        told = f"{point['good']:,.0f} served, {point['refused']:,.0f} refused, p95 {point['p95']:.0f} ms"
        parts.append(
            f'<text x="0" y="{top + 14}">{point["load"]:.0%}</text>'
            f'<rect class="ours" x="50" y="{top}" width="{good:.1f}" height="{BAR}"><title>{told}</title></rect>'
            f'<rect class="peer" x="{50 + good:.1f}" y="{top}" width="{refused:.1f}" height="{BAR}"/>'
            f'<text x="{58 + good + refused:.1f}" y="{top + 14}">p95 {point["p95"]:.0f} ms</text>'
        )
    height = len(points) * (BAR + GAP)
    label = "served and refused of each load"
    return f'<svg role="img" aria-label="{label}" viewBox="0 0 {WIDTH} {height}" width="{WIDTH}">{"".join(parts)}</svg>'


def setting() -> str:
    cores = len(os.sched_getaffinity(0))
    machine = f"{cores} cores ({platform.machine()}, {platform.system()})"
    return f"{now():%Y-%m-%d}, {machine}, Python {platform.python_version()}"


if __name__ == "__main__":
    sys.exit(main())
