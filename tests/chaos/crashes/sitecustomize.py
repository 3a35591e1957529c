"""Kills processes in the middle of an order: Python imports this at the start of each process of a platform whose
PYTHONPATH leads here (`tests/chaos/test_order_crash.py`), and it wraps what the saga of orders does.

A file in the folder TEST_ORDER_CRASHES, named by a cart, says where, how long to wait there, so that others come to
theirs, and which process to kill if not the one that has come there: "after do capture 2 [pid]". It happens once. The
instance that shares its process with other services leaves it to one that does not.
"""

import importlib.abc
import importlib.machinery
import importlib.util
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

MODULE = "services.commerce.puabo_nuki_order_processor.orders"


class Finder(importlib.abc.MetaPathFinder):
    """Finds the module as ever, and wraps what it has loaded."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        if fullname != MODULE:
            return None
        sys.meta_path.remove(self)
        spec = importlib.util.find_spec(fullname)
        assert spec is not None
        loader: Any = spec.loader
        execute = loader.exec_module

        def load(module: ModuleType) -> None:
            execute(module)
            wrap(module)

        loader.exec_module = load
        return spec


def wrap(module: Any) -> None:
    import asyncio
    import contextlib
    import signal

    from services.chassis.saga import Later

    orders, folder = module.Orders, Path(os.environ["TEST_ORDER_CRASHES"])
    outcome, advance = orders._outcome, orders._advance

    async def die(when: str, action: Any, order: Any) -> None:
        trap = folder / order.cart_id
        if not trap.exists():
            return
        wanted_when, verb, what, seconds, *pid = trap.read_text().split()
        if (verb, what) != (action.verb, action.what):
            return
        if not pid and not os.environ.get("NEXUS_INSTANCE"):
            raise Later("left to a process that may die")
        if wanted_when == when:
            trap.unlink()
            await asyncio.sleep(float(seconds))
            with contextlib.suppress(ProcessLookupError):  # it has been killed for another order
                os.kill(int(pid[0]) if pid else os.getpid(), signal.SIGKILL)

    async def outcome_or_death(self: Any, order: Any, action: Any) -> Any:
        await die("before", action, order)
        event = await outcome(self, order, action)
        if event is not None:
            await die("after", action, order)
        return event

    async def advance_or_death(self: Any, order: Any) -> Any:
        action = module.decide(order, module.now())
        after = await advance(self, order)
        if after is not None:
            await die("recorded", action, order)
        return after

    orders._outcome, orders._advance = outcome_or_death, advance_or_death


if "TEST_ORDER_CRASHES" in os.environ:
    sys.meta_path.insert(0, Finder())
