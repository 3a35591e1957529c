"""The supervisor starts in order, restarts what crashes, and leaves nothing running. With real processes."""

import asyncio
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from time import monotonic

import psutil
import pytest

from mesh.local.supervisor import (
    AlreadyRunning,
    LogFile,
    Patience,
    PlatformError,
    PlatformState,
    Process,
    Supervisor,
    end_leftovers,
    exclusive,
    find,
    read_state,
)

QUICK = Patience(start=10, attempts=2, first_delay=0.01, stop=5)


def touching(path: Path) -> str:
    """A program that is ready once the file is there, and that runs until it is told to stop."""
    return f"import pathlib, signal; pathlib.Path({str(path)!r}).touch(); signal.pause()"


def python(name: str, program: str, ready: Path, **more: object) -> Process:
    async def is_ready() -> bool:
        return os.path.exists(ready)  # noqa: ASYNC240  a stat() does not block

    return Process(name, [sys.executable, "-c", program], is_ready, **more)  # type: ignore[arg-type]


async def until(condition: Callable[[], bool]) -> None:
    deadline = monotonic() + 15
    while not condition():
        assert monotonic() < deadline, "the condition was not met in time"
        await asyncio.sleep(0.01)


def alive(pid: int | None) -> bool:
    return bool(pid) and psutil.pid_exists(pid or 0) and psutil.Process(pid).status() != psutil.STATUS_ZOMBIE


async def test_a_process_starts_when_what_it_needs_is_ready(tmp_path: Path) -> None:
    order: list[str] = []

    def changed(state: PlatformState) -> None:
        order.extend(p.name for p in state.processes if p.state == "ready" and p.name not in order)

    first, second = tmp_path / "first", tmp_path / "second"
    checked = f"import pathlib; assert pathlib.Path({str(first)!r}).exists(); {touching(second)}"
    async with Supervisor(tmp_path, tmp_path, QUICK, changed) as supervisor:
        await supervisor.start(
            [
                python("edge", checked, second, depends_on=["service"]),
                python("service", touching(first), first),
            ]
        )
        assert order == ["service", "edge"]


async def test_a_crashed_process_is_started_again(tmp_path: Path) -> None:
    ready = tmp_path / "ready"
    async with Supervisor(tmp_path, tmp_path, QUICK) as supervisor:
        await supervisor.start([python("service", touching(ready), ready)])
        state = supervisor.state.processes[0]
        before = state.pid
        os.kill(before or 0, signal.SIGKILL)
        await until(lambda: state.restarts == 1 and state.state == "ready")
        assert state.pid != before
        assert state.problem == "was killed by SIGKILL"


def test_restarts_are_further_and_further_apart_up_to_a_limit() -> None:
    patience = Patience(first_delay=0.5, longest_delay=3)
    assert [patience.delay(crashes) for crashes in (0, 1, 2, 3, 5000)] == [0.5, 1, 2, 3, 3]


async def test_a_process_that_cannot_start_is_named_with_its_last_words(tmp_path: Path) -> None:
    broken = python("service", "raise SystemExit('no such table')", tmp_path / "never")
    async with Supervisor(tmp_path, tmp_path, QUICK) as supervisor:
        with pytest.raises(PlatformError, match="service ended with exit code 1: no such table"):
            await supervisor.start([broken])


async def test_a_process_that_never_becomes_ready_is_given_up(tmp_path: Path) -> None:
    stuck = python("service", touching(tmp_path / "running"), tmp_path / "never")
    async with Supervisor(tmp_path, tmp_path, Patience(start=0.5)) as supervisor:
        with pytest.raises(PlatformError, match="was not ready within"):
            await supervisor.start([stuck])


async def test_a_stop_waits_for_work_in_progress_and_goes_backwards(tmp_path: Path) -> None:
    stopped: list[str] = []

    def changed(state: PlatformState) -> None:
        stopped.extend(p.name for p in state.processes if p.state == "stopped" and p.name not in stopped)

    service, edge = tmp_path / "service", tmp_path / "edge"
    finishing = (
        "import pathlib, signal, sys\n"
        f"finish = lambda *_: (pathlib.Path({str(tmp_path / 'finished')!r}).touch(), sys.exit())\n"
        f"signal.signal(signal.SIGTERM, finish); {touching(service)}"
    )
    async with Supervisor(tmp_path, tmp_path, QUICK, changed) as supervisor:
        await supervisor.start(
            [
                python("service", finishing, service),
                python("edge", touching(edge), edge, depends_on=["service"]),
            ]
        )
    assert (tmp_path / "finished").exists()
    assert stopped == ["edge", "service"]
    assert read_state(tmp_path) is None


async def test_what_does_not_stop_is_killed_with_its_own_children(tmp_path: Path) -> None:
    ready = tmp_path / "ready"
    deaf = (
        "import pathlib, signal, subprocess, sys\n"
        "signal.signal(signal.SIGTERM, signal.SIG_IGN)\n"
        "child = subprocess.Popen([sys.executable, '-c', 'import signal; signal.pause()'])\n"
        f"pathlib.Path({str(ready)!r}).write_text(str(child.pid))\n"
        "while True: signal.pause()"
    )
    async with Supervisor(tmp_path, tmp_path, Patience(stop=0.2)) as supervisor:
        await supervisor.start([python("service", deaf, ready)])
        await until(lambda: bool(ready.read_text()))
        pids = [supervisor.state.processes[0].pid, int(ready.read_text())]
    await until(lambda: not any(map(alive, pids)))


async def test_children_stop_when_the_supervisor_is_killed(tmp_path: Path) -> None:
    killed, child = await kill_supervisor(tmp_path)
    await until(lambda: not alive(child))
    assert not killed.alive


async def test_the_next_start_ends_what_did_not_stop_by_itself(tmp_path: Path) -> None:
    killed, child = await kill_supervisor(tmp_path, deaf=True)
    assert alive(child)
    assert end_leftovers(killed, patience=0.2) == ["service"]
    assert not alive(child)


async def test_a_process_that_inherited_a_pid_is_not_taken_for_ours() -> None:
    assert find(os.getpid(), psutil.Process().create_time()) is not None
    assert find(os.getpid(), psutil.Process().create_time() - 60) is None


def test_a_second_supervisor_of_the_same_home_is_refused(tmp_path: Path) -> None:
    with exclusive(tmp_path), pytest.raises(AlreadyRunning, match="already runs"), exclusive(tmp_path):
        pass
    with exclusive(tmp_path):
        pass


async def test_what_a_process_prints_is_in_its_log(tmp_path: Path) -> None:
    ready = tmp_path / "ready"
    talking = f"import sys; print('to stdout', flush=True); print('to stderr', file=sys.stderr); {touching(ready)}"
    async with Supervisor(tmp_path, tmp_path, QUICK) as supervisor:
        await supervisor.start([python("service", talking, ready)])
    assert (tmp_path / "service.log").read_text().splitlines() == ["to stdout", "to stderr"]


def test_a_full_log_is_continued_in_a_new_file_at_the_end_of_a_line(tmp_path: Path) -> None:
    log = LogFile(tmp_path / "service.log", limit=20)
    for data in (b"first line\n", b"second ", b"line\nthird line\n"):
        log.write(data)
    log.close()
    assert (tmp_path / "service.log.1").read_text() == "first line\nsecond line\n"
    assert (tmp_path / "service.log").read_text() == "third line\n"


def test_a_state_file_emptied_by_a_power_cut_counts_as_none(tmp_path: Path) -> None:
    (tmp_path / "platform.json").touch()
    assert read_state(tmp_path) is None


async def kill_supervisor(tmp_path: Path, deaf: bool = False) -> tuple[PlatformState, int]:
    """Run a supervisor in a process of its own and kill it; returns its last state and its child's pid."""
    ready = tmp_path / "ready"
    disposition = "SIG_IGN" if deaf else "SIG_DFL"
    program = f"import signal; signal.signal(signal.SIGTERM, signal.{disposition}); {touching(ready)}"
    supervisor = subprocess.Popen(  # noqa: ASYNC220
        [sys.executable, "-c", SUPERVISOR, str(tmp_path), program]
    )
    try:
        await until(lambda: bool((state := read_state(tmp_path)) and state.phase == "ready"))
    finally:
        supervisor.kill()
        supervisor.wait()
    state = read_state(tmp_path)
    assert state is not None
    assert state.processes[0].pid is not None
    return state, state.processes[0].pid


SUPERVISOR = """
import asyncio, pathlib, sys
from mesh.local.supervisor import Process, Supervisor

async def main(folder, program):
    async def ready():
        return (folder / "ready").exists()
    async with Supervisor(folder, folder) as supervisor:
        await supervisor.start([Process("service", [sys.executable, "-c", program], ready)])
        supervisor.enter("ready")
        await supervisor.watch()

asyncio.run(main(pathlib.Path(sys.argv[1]), sys.argv[2]))
"""
