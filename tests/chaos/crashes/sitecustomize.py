"""Kills processes in the middle of an order: Python imports this at the start of each process of a platform whose
PYTHONPATH leads here (`tests/chaos/test_order_crash.py`), and it wraps what the saga of orders does.

A file in the folder TEST_ORDER_CRASHES, named by a cart, says where, how long to wait there, so that others come to
theirs, and which process to kill if not the one that has come there: "after do capture 2 [finance]". "unanswered" is
after a step's commit at the victim, whose answer is lost with it. It happens once, to a process that lives at that
moment, and a file of the same name in `kills` says to which. The instance that shares its process with other services
leaves it to one that does not.
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
    import signal

    from mesh.local.supervisor import find, read_state
    from nexus.type.v1.faults import DependencyUnavailable
    from services.chassis.saga import Later

    orders, folder = module.Orders, Path(os.environ["TEST_ORDER_CRASHES"])
    outcome, advance = orders._outcome, orders._advance

    def pid_of(name: str) -> int | None:
        """Of a process of the platform that lives now."""
        state = read_state(Path(os.environ["TEST_ORDER_RUN"]))
        process = next(process for process in state.processes if process.name == name) if state is not None else None
        return process.pid if process is not None and find(process.pid, process.created) is not None else None

    def note(trap: Path, pid: int) -> None:
        (folder / "kills" / trap.name).write_text(str(pid))
        trap.unlink()

    async def die(when: str, action: Any, order: Any) -> bool:
        """Whether somebody else did."""
        trap = folder / order.cart_id
        if not trap.exists():
            return False
        wanted_when, verb, what, seconds, *victim = trap.read_text().split()
        if (verb, what) != (action.verb, action.what):
            return False
        if not victim and not os.environ.get("NEXUS_INSTANCE"):
            raise Later("left to a process that may die")
        if wanted_when == when:
            pid = pid_of(victim[0]) if victim else os.getpid()
            if pid is None:
                raise Later("it has just been killed for another order")
            if not victim:
                note(trap, pid)
                await asyncio.sleep(float(seconds))
                os.kill(pid, signal.SIGKILL)
                return False
            await asyncio.sleep(float(seconds))  # if we die ourselves meanwhile, whoever goes on comes here again
            if now_lives := pid_of(victim[0]):  # or it has been killed for another order meanwhile
                os.kill(pid := now_lives, signal.SIGKILL)
            note(trap, pid)
            return True
        return False

    async def outcome_or_death(self: Any, order: Any, action: Any) -> Any:
        await die("before", action, order)
        event = await outcome(self, order, action)
        if event is not None and await die("unanswered", action, order):
            raise DependencyUnavailable(dependency="whoever died")
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
