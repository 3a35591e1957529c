"""Run the benchmarks: `make bench`, `make bench BENCH=chassis`, `FORMAT=json make bench`.

Figures depend on the machine and on what else it does; what counts is the ratio of two taken in the same run.
"""

import json
import os
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

from rich.console import Console
from rich.table import Table

from tests.bench import catalog, chassis, event, hop, http, identity, ledger, orders, overload, running
from tests.bench.measure import Result, Unavailable
from tests.platforms import Platform

BENCHMARKS: dict[str, Callable[[Platform], Result]] = {
    "chassis": chassis.run,
    "read": http.read,
    "read-node": http.read_node,
    "read-cpu": http.read_cpu,
    "write": http.write,
    "cached": http.cached,
    "scale": http.scale,
    "overload": overload.run,
    "startup": running.startup,
    "memory": running.memory,
    "hop": hop.latency,
    "hop-throughput": hop.throughput,
    "mesh-memory": hop.memory,
    "search": catalog.browsing,
    "search-typed": catalog.typing,
    "ledger": ledger.uniform,
    "ledger-hot": ledger.hot,
    "token-verify": identity.verify,
    "token-verify-cached": identity.verify_cached,
    "introspect": identity.introspect,
    "login": identity.login,
    "encrypt": identity.encrypt,
    "decrypt": identity.decrypt,
    "event-latency": event.latency,
    "saga": orders.run,
}


def main() -> int:
    names = sys.argv[1:] or list(BENCHMARKS)
    console = Console(stderr=True)
    unknown = [name for name in names if name not in BENCHMARKS]
    if unknown:
        console.print(f"There is no benchmark {unknown[0]}; there are: {', '.join(BENCHMARKS)}.")
        return 2
    failed: list[str] = []
    results, as_json = [], os.environ.get("FORMAT") == "json"
    with tempfile.TemporaryDirectory(prefix="nexus-bench-") as folder:
        Path(folder).chmod(0o711)
        platform = Platform(Path(folder) / "platform")
        platform.up()
        try:
            for name in names:
                with console.status(f"measuring {name} ..."):
                    try:
                        results.append(BENCHMARKS[name](platform))
                        if as_json:  # at once: whatever becomes of the others
                            print(json.dumps({**vars(results[-1]), "ratio": results[-1].ratio}), flush=True)
                    except Unavailable as reason:
                        console.print(f"{name}: skipped, {reason}")
                    except Exception:
                        failed.append(name)
                        console.print_exception()
        finally:
            platform.down()
    if not as_json:
        Console().print(table(results))
    if failed:
        console.print(f"Failed: {', '.join(failed)}.")
    return 1 if failed else 0


def table(results: list[Result]) -> Table:
    rows = Table("benchmark", "ours", "peer", "ratio", "bar", "unit", "rounds")
    for result in results:
        rows.add_row(
            result.bench,
            f"{result.ours:,.1f} ±{result.ours_spread / 2:.0%}",
            f"{result.peer:,.1f} ±{(result.peer_spread or 0) / 2:.0%}" if result.peer else "",
            f"{result.ratio:.2f}" if result.ratio else "",
            result.bar,
            result.unit,
            str(result.rounds),
        )
    return rows


if __name__ == "__main__":
    sys.exit(main())
