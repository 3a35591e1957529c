"""How a benchmark is run: ours and the peer in turn, A B A B, so that what disturbs one disturbs the other."""

import re
import shutil
import statistics
import subprocess
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

Measure = Callable[[], float]
WRK_SECONDS = 4.0


class Unavailable(Exception):  # noqa: N818  a fact about the machine
    """Something that the benchmark needs is not on this machine. The message says what to install."""


@dataclass
class Result:
    """One row of the table. Medians of all rounds."""

    bench: str
    unit: str
    bar: str
    """What the row must reach, in words."""
    ours: float
    ours_spread: float
    """(highest - lowest) / median."""
    peer: float | None = None
    peer_spread: float | None = None
    rounds: int = 0
    samples: Mapping[str, list[float]] = field(default_factory=dict)
    curve: Sequence[Mapping[str, float]] = ()
    """Of `overload`: what was served of each load."""

    @property
    def ratio(self) -> float | None:
        return self.ours / self.peer if self.peer else None


def compare(bench: str, unit: str, bar: str, ours: Measure, peer: Measure | None = None, rounds: int = 5) -> Result:
    """Measure both in turn, after one round each that does not count."""
    samples: dict[str, list[float]] = {"ours": [], "peer": []}
    for round_number in range(rounds + 1):
        for name, measure in (("ours", ours), ("peer", peer)):
            if measure is not None:
                value = measure()
                if round_number > 0:
                    samples[name].append(value)
    return Result(
        bench=bench,
        unit=unit,
        bar=bar,
        ours=statistics.median(samples["ours"]),
        ours_spread=_spread(samples["ours"]),
        peer=statistics.median(samples["peer"]) if samples["peer"] else None,
        peer_spread=_spread(samples["peer"]) if samples["peer"] else None,
        rounds=rounds,
        samples=samples,
    )


def _spread(samples: list[float]) -> float:
    return (max(samples) - min(samples)) / statistics.median(samples)


def h2load(
    url: str, body: Path, headers: Mapping[str, str], *, calls: int, clients: int = 8, streams: int = 16
) -> float:
    """Calls a second over HTTP/2. Raises if any was not answered with 2xx."""
    program = shutil.which("h2load")
    if program is None:
        raise Unavailable("h2load is missing: install Debian's nghttp2-client")
    arguments = [program, "-n", str(calls), "-c", str(clients), "-m", str(streams), "-d", str(body)]
    for name, value in headers.items():
        arguments += ["-H", f"{name}: {value}"]
    output = subprocess.run([*arguments, url], capture_output=True, text=True, check=True, timeout=300).stdout
    good = re.search(r"(\d+) 2xx", output)
    rate = re.search(r"([\d.]+) req/s", output)
    assert good is not None, output
    assert rate is not None, output
    assert int(good[1]) == calls, output
    return float(rate[1])


def wrk(
    url: str,
    headers: Mapping[str, str],
    *,
    seconds: float = WRK_SECONDS,
    connections: int = 32,
    script: Path | None = None,
) -> float:
    """Requests a second over HTTP/1.1. Raises if any was not answered with 2xx."""
    program = shutil.which("wrk")
    if program is None:
        raise Unavailable("wrk is missing: install Debian's wrk")
    arguments = [program, "-t", "1", "-c", str(connections), "-d", f"{seconds:.0f}s", "--timeout", "10s"]
    if script is not None:
        arguments += ["-s", str(script)]
    for name, value in headers.items():
        arguments += ["-H", f"{name}: {value}"]
    output = subprocess.run([*arguments, url], capture_output=True, text=True, check=True, timeout=120).stdout
    rate = re.search(r"Requests/sec:\s+([\d.]+)", output)
    assert rate is not None, output
    assert "Non-2xx" not in output, output
    assert "Socket errors" not in output, output
    return float(rate[1])
