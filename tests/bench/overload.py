"""`overload`: what reads get through when twice as many arrive as can be served, beside the most that can be served.

The load is open: requests come at their rate whatever becomes of those before. The edge refuses what is too much at
once, and the rest is answered in time.
"""

import asyncio
import shutil
import statistics
import subprocess
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

from tests.bench.http import prepare
from tests.bench.measure import Result, Unavailable, wrk
from tests.platforms import Platform

CLIENTS, SECONDS, ROUNDS = 32, 6, 3
LOADS = (0.5, 0.8, 1.0, 1.5, 2.0)
"""Of the most that can be served."""


class Served(NamedTuple):
    load: float
    good: float
    """Requests a second that were answered with 200."""
    refused: float
    """Requests a second that were answered with 503 or 429."""
    p95: float
    """Milliseconds that 95 of 100 good answers took at most."""


def run(platform: Platform) -> Result:
    work = asyncio.run(prepare(platform))
    url = platform.https_url + work.path
    peaks = [wrk(url, work.headers, seconds=SECONDS) for _ in range(ROUNDS)]
    peak = statistics.median(peaks)
    curve = [_offer(url, work.headers, load, peak) for load in LOADS]
    twice = [curve[-1], *(_offer(url, work.headers, LOADS[-1], peak) for _ in range(ROUNDS - 1))]
    good, p95 = (statistics.median(values) for values in zip(*((each.good, each.p95) for each in twice), strict=True))
    return Result(
        bench="overload",
        unit=f"requests/s; p95 {p95:.0f} ms",
        bar="≥ 0.80, p95 < 200 ms",
        ours=good,
        ours_spread=(max(each.good for each in twice) - min(each.good for each in twice)) / good,
        peer=peak,
        peer_spread=(max(peaks) - min(peaks)) / peak,
        rounds=ROUNDS,
        samples={"ours": [each.good for each in twice], "peer": peaks},
        curve=[each._asdict() for each in curve],
    )


def _offer(url: str, headers: Mapping[str, str], load: float, peak: float) -> Served:
    program = shutil.which("h2load")
    if program is None:
        raise Unavailable("h2load is missing: install Debian's nghttp2-client")
    rate = max(1, round(load * peak / CLIENTS))
    with tempfile.TemporaryDirectory() as folder:
        log = Path(folder) / "requests"
        counts = [f"--rps={rate}", "-c", str(CLIENTS), "-n", str(rate * CLIENTS * SECONDS), "-m", "1000"]
        named = [word for name, value in headers.items() for word in ("-H", f"{name}: {value}")]
        subprocess.run(
            [program, *counts, f"--log-file={log}", *named, url], capture_output=True, check=True, timeout=120
        )
        answers = [tuple(map(int, line.split("\t")[:3])) for line in log.read_text().splitlines()]
    unknown = {status for _, status, _ in answers} - {200, 429, 503}
    assert not unknown, f"answered with {unknown}"
    # From the first request to the last answer, so that what is answered late counts as slow.
    seconds = (max(start + took for start, _, took in answers) - min(start for start, _, _ in answers)) / 1e6
    good = sorted(took for _, status, took in answers if status == 200)
    refused = len(answers) - len(good)
    return Served(load, len(good) / seconds, refused / seconds, good[int(len(good) * 0.95)] / 1000)
