"""`startup` and `memory`: how long a warm platform takes to be ready, and what it holds when idle."""

import json
import time

from tests.bench.measure import Result, compare
from tests.platforms import Platform

MEBIBYTE = 1024 * 1024


def startup(platform: Platform) -> Result:
    def seconds() -> float:
        platform.down()
        started = time.monotonic()
        platform.up()
        return time.monotonic() - started

    return compare("startup", "s", "≤ 10 s", seconds, rounds=3)


def memory(platform: Platform) -> Result:
    def mebibytes() -> float:
        status = json.loads(platform.nexus("status", "--json").stdout)
        return float(sum(process["memory_bytes"] for process in status["processes"])) / MEBIBYTE

    return compare("memory", "MiB", "≤ 2048 MiB", mebibytes, rounds=1)
