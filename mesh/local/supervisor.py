"""Runs programs as children: starts them in order, watches them, restarts what crashes, and leaves nothing
running.

It knows nothing of the platform; `platform.py` says what is to run.
"""

import asyncio
import contextlib
import fcntl
import os
import shutil
import signal
import sys
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from time import monotonic
from types import TracebackType
from typing import Literal, Self

import psutil
from pydantic import BaseModel, ValidationError

from mesh.local import launch
from services.chassis import clock

POLL_INTERVAL = 0.05
STATE_FILE = "platform.json"


class PlatformError(Exception):
    """Something the person at the keyboard can put right. The message is one line that says how."""


class AlreadyRunning(PlatformError):  # noqa: N818  a state, not a failure
    """Another supervisor runs the platform of this home."""


@dataclass(frozen=True)
class Account:
    """Whom a process runs as."""

    uid: int
    gid: int


@dataclass(frozen=True)
class Process:
    """A program to keep running."""

    name: str
    argv: Sequence[str]
    ready: Callable[[], Awaitable[bool]]
    """Whether it does its work now. Asked again and again while it starts; must not raise for "not yet"."""
    env: Mapping[str, str] = field(default_factory=dict)
    cwd: Path | None = None
    account: Account | None = None
    stop_signal: signal.Signals = signal.SIGTERM
    drain: Callable[[], Awaitable[None]] | None = None
    """Done before the stop signal, for a program that does not finish its work by itself."""
    depends_on: Sequence[str] = ()
    """Processes that must be ready before it starts, and that stop after it."""
    stops_before: Sequence[str] = ()
    """More processes that stop after it."""
    services: Sequence[str] = ()
    ports: Mapping[str, int] = field(default_factory=dict)


@dataclass(frozen=True)
class Patience:
    """Seconds (and times) to wait."""

    start: float = 120.0
    """For a process to become ready."""
    attempts: int = 3
    """How often a process may end before it was ever ready, until the start is given up."""
    first_delay: float = 0.5
    """Before the first restart; doubles with each crash that follows."""
    longest_delay: float = 30.0
    stable_after: float = 60.0
    """A process that ran for this long begins again at the first delay."""
    stop: float = 25.0
    """For a process to end by itself once told to."""

    def delay(self, crashes: int) -> float:
        return min(self.first_delay * 2.0 ** min(crashes, 16), self.longest_delay)


class ProcessState(BaseModel):
    name: str
    state: Literal["waiting", "starting", "ready", "crashed", "stopping", "stopped"] = "waiting"
    pid: int | None = None
    created: float = 0.0
    """With the pid, tells this process from a later one of the same number."""
    restarts: int = 0
    started_at: datetime | None = None
    stop_signal: int = signal.SIGTERM
    services: list[str] = []
    ports: dict[str, int] = {}
    problem: str | None = None
    """Why it ended the last time."""


class PlatformState(BaseModel):
    """What `run/platform.json` holds."""

    pid: int
    created: float
    started_at: datetime
    phase: str = "starting"
    """What the supervisor is doing: "ready", or words for people."""
    processes: list[ProcessState] = []
    demo: dict[str, str] = {}
    """Credentials of the demo user."""

    @property
    def alive(self) -> bool:
        return find(self.pid, self.created) is not None


def find(pid: int | None, created: float) -> psutil.Process | None:
    """The process that had this pid when it was created then, if it still runs."""
    try:
        process = psutil.Process(pid) if pid else None
        # The clock of the machine may have been set since, which moves creation times a little.
        if process is None or abs(process.create_time() - created) > 2:
            return None
        return None if process.status() == psutil.STATUS_ZOMBIE else process
    except psutil.NoSuchProcess:
        return None


def read_state(run_dir: Path) -> PlatformState | None:
    """The state that the last supervisor wrote; it may be dead. None when there is none of use."""
    try:
        return PlatformState.model_validate_json((run_dir / STATE_FILE).read_bytes())
    except (FileNotFoundError, ValidationError):
        return None  # invalid: emptied by a power cut, which no process survives, or of another version


@contextlib.contextmanager
def exclusive(run_dir: Path) -> Iterator[None]:
    """Hold the platform of this folder, or raise AlreadyRunning. The kernel lets go when we die."""
    with (run_dir / "platform.lock").open("a") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise AlreadyRunning(f"A platform already runs in {run_dir.parent}.") from None
        yield


def end_leftovers(state: PlatformState, patience: float) -> list[str]:
    """End what a dead supervisor left behind, and return the names of it.

    On Linux its children got their stop signal when it died and may still be draining; elsewhere they were
    told nothing.
    """
    found = {process: entry for entry in state.processes if (process := find(entry.pid, entry.created)) is not None}
    for process, entry in found.items():
        with contextlib.suppress(psutil.NoSuchProcess):
            process.send_signal(entry.stop_signal)
    _, stubborn = psutil.wait_procs(list(found), timeout=patience)
    for process in stubborn:
        kill_tree(process.pid)
    psutil.wait_procs(stubborn)
    return [entry.name for entry in found.values()]


def kill_tree(pid: int) -> None:
    """Kill a child of ours, its process group, and its descendants: PostgreSQL's have their own groups."""
    with contextlib.suppress(psutil.NoSuchProcess):
        for descendant in psutil.Process(pid).children(recursive=True):
            with contextlib.suppress(psutil.NoSuchProcess):
                descendant.kill()
    with contextlib.suppress(ProcessLookupError):
        os.killpg(pid, signal.SIGKILL)


class LogFile:
    """What a process prints, kept in `<name>.log` and, once that is full, `<name>.log.1`."""

    def __init__(self, path: Path, limit: int = 16 * 1024 * 1024) -> None:
        self.path = path
        self._limit = limit
        self._file = path.open("ab", buffering=0)
        self._pipe: int | None = None
        self._attached_at = 0

    def attach(self) -> int:
        """The writing end of a new pipe into this file; the caller closes it."""
        self._attached_at = self._file.tell()
        self._pipe, writing_end = os.pipe()
        os.set_blocking(self._pipe, False)
        asyncio.get_running_loop().add_reader(self._pipe, self._pump)
        return writing_end

    def detach(self) -> None:
        """Take what is still in the pipe, and close it."""
        if self._pipe is not None:
            with contextlib.suppress(BlockingIOError):
                while self._pump():
                    pass
            asyncio.get_running_loop().remove_reader(self._pipe)
            os.close(self._pipe)
            self._pipe = None

    def _pump(self) -> bool:
        assert self._pipe is not None, "only an attached log is pumped"
        data = os.read(self._pipe, 65_536)
        if data:
            self.write(data)
        else:
            asyncio.get_running_loop().remove_reader(self._pipe)
        return bool(data)

    def write(self, data: bytes) -> None:
        if self._file.tell() + len(data) > self._limit:
            rest_of_line, newline, data = data.partition(b"\n")
            self._file.write(rest_of_line + newline)
            self._file.close()
            self.path.replace(self.path.with_suffix(".log.1"))
            self._attached_at = 0
            self._file = self.path.open("ab", buffering=0)
        self._file.write(data)

    def note(self, text: str) -> None:
        """Say something of our own in between."""
        self.write(f"{clock.now().isoformat(timespec='milliseconds')} nexus: {text}\n".encode())

    def last_line(self) -> str:
        """What the process said last in this run, shortened to fit a message."""
        lines = self.path.read_bytes()[self._attached_at :].decode(errors="replace").splitlines()
        return next((line for line in reversed(lines) if line.strip() and " nexus: " not in line), "")[:500]

    def close(self) -> None:
        self.detach()
        self._file.close()


class Supervisor:
    """`async with Supervisor(…) as supervisor: await supervisor.start(…)`; leaving the block stops them all.

    `changed` is called with the new state whenever anything changes; the same is in the state file.
    """

    def __init__(
        self,
        run_dir: Path,
        logs: Path,
        patience: Patience | None = None,
        changed: Callable[[PlatformState], None] = lambda state: None,
    ) -> None:
        self._state_file = run_dir / STATE_FILE
        self._logs = logs
        self._patience = patience or Patience()
        self._report = changed
        self._children: dict[str, _Child] = {}
        self.stopping = False
        me = psutil.Process()
        self.state = PlatformState(pid=me.pid, created=me.create_time(), started_at=clock.now())

    async def __aenter__(self) -> Self:
        self.changed()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            await self.stop()
        finally:
            self.kill()
        self._state_file.unlink()

    def enter(self, phase: str) -> None:
        self.state.phase = phase
        self.changed()

    def changed(self) -> None:
        """Write the state down, whole or not at all, and report it."""
        new = self._state_file.with_suffix(".new")
        new.write_text(self.state.model_dump_json(indent=2))
        new.replace(self._state_file)
        self._report(self.state)

    async def start(self, processes: Sequence[Process]) -> None:
        """Start them, as parallel as their dependencies allow, and return when all are ready.

        Raises PlatformError, with the process' last words, for one that does not become ready.
        """
        added = []
        for process in processes:
            log = LogFile(self._logs / f"{process.name}.log")
            child = _Child(process, log, self._patience, self.changed)
            self._children[process.name] = child
            self.state.processes.append(child.state)
            added.append(child)
        for child in added:
            child.begin([self._children[name] for name in child.process.depends_on])
        await asyncio.gather(*(asyncio.shield(child.started) for child in added))

    async def watch(self) -> None:
        """Keep them running until cancelled."""
        await asyncio.gather(*(child.task for child in self._children.values() if child.task))

    async def stop(self) -> None:
        """Stop them all, each after those that depend on it."""
        self.stopping = True
        self.enter("stopping")
        children = self._children.values()
        await asyncio.gather(*(child.abandon() for child in children))
        dependents = {
            name: [child for child in children if name in (*child.process.depends_on, *child.process.stops_before)]
            for name in self._children
        }
        await asyncio.gather(*(child.stop(dependents[name]) for name, child in self._children.items()))

    def kill(self) -> None:
        """End them all at once, without waiting for the calls they work on."""
        for child in self._children.values():
            child.kill()


class _Child:
    """A process with its log, its state and the task that keeps it running."""

    def __init__(self, process: Process, log: LogFile, patience: Patience, changed: Callable[[], None]) -> None:
        self.process = process
        self.state = ProcessState(
            name=process.name,
            stop_signal=process.stop_signal,
            services=list(process.services),
            ports=dict(process.ports),
        )
        self.started: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.task: asyncio.Task[None] | None = None
        self._stopped = asyncio.Event()
        self._log = log
        self._patience = patience
        self._changed = changed
        self._running: asyncio.subprocess.Process | None = None

    def begin(self, dependencies: Sequence["_Child"]) -> None:
        self.task = asyncio.create_task(self._keep_running(dependencies), name=self.process.name)
        self.task.add_done_callback(self._ended)

    def _ended(self, task: asyncio.Task[None]) -> None:
        if task.cancelled():
            self.started.cancel()
        elif (error := task.exception()) and not self.started.done():
            self.started.set_exception(error)

    async def _keep_running(self, dependencies: Sequence["_Child"]) -> None:
        for dependency in dependencies:
            await asyncio.shield(dependency.started)
        crashes = 0
        while True:
            began = monotonic()
            problem = await self._run_once()
            if monotonic() - began >= self._patience.stable_after:
                crashes = 0
            self.state.problem = problem
            self._set("crashed")
            self._log.note(problem)
            crashes += 1
            given_up = crashes >= self._patience.attempts or monotonic() - began >= self._patience.start
            if given_up and not self.started.done():
                last = self._log.last_line()
                raise PlatformError(f"{self.process.name} {problem}: {last} (see {self._log.path})")
            await asyncio.sleep(self._patience.delay(crashes - 1))
            self.state.restarts += 1

    async def _run_once(self) -> str:
        """Start it and wait for its end. Returns how it ended."""
        try:
            running = await self._spawn()
        except OSError as error:
            return f"cannot be started: {error}"
        async with asyncio.TaskGroup() as group:
            probe = group.create_task(self._await_ready(running.pid))
            code = await running.wait()
            probe.cancel()
        kill_tree(running.pid)  # what it started must not outlive it
        self._log.detach()
        if not probe.cancelled() and not probe.result():
            return f"was not ready within {self._patience.start:.0f} s"
        return f"was killed by {signal.Signals(-code).name}" if code < 0 else f"ended with exit code {code}"

    async def _spawn(self) -> asyncio.subprocess.Process:
        output = self._log.attach()
        try:
            self._running = await asyncio.create_subprocess_exec(
                *launched(self.process.argv, self.process.account, self.process.stop_signal),
                stdin=asyncio.subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                env=dict(self.process.env),
                cwd=self.process.cwd,
                start_new_session=True,  # so that Ctrl-C in the terminal reaches only the supervisor
            )
        finally:
            os.close(output)
        self.state.pid = self._running.pid
        self.state.created = _creation_time(self._running.pid)
        self.state.started_at = clock.now()
        self._set("starting")
        return self._running

    async def _await_ready(self, pid: int) -> bool:
        """Wait until it is ready; or kill it when that takes too long, and return False."""
        deadline = monotonic() + self._patience.start
        while not await self.process.ready():
            if monotonic() > deadline:
                kill_tree(pid)
                return False
            await asyncio.sleep(POLL_INTERVAL)
        self._set("ready")
        if not self.started.done():
            self.started.set_result(None)
        return True

    async def abandon(self) -> None:
        """No longer restart it."""
        if self.task:
            self.task.cancel()
            await asyncio.wait({self.task})

    async def stop(self, dependents: Sequence["_Child"]) -> None:
        """Stop it once those that depend on it have stopped: politely first, then by force."""
        for dependent in dependents:
            await dependent._stopped.wait()
        running = self._running
        if running and running.returncode is None:
            self._set("stopping")
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(self._patience.stop):
                    if self.process.drain:
                        await self.process.drain()
                    with contextlib.suppress(ProcessLookupError):
                        running.send_signal(self.process.stop_signal)
                    await running.wait()
            kill_tree(running.pid)
            await running.wait()
        self._set("stopped")
        self._stopped.set()
        self._log.close()

    def kill(self) -> None:
        if self._running and self._running.returncode is None:
            kill_tree(self._running.pid)

    def _set(self, state: Literal["starting", "ready", "crashed", "stopping", "stopped"]) -> None:
        self.state.state = state
        self._changed()


def launched(argv: Sequence[str], account: Account | None, stop_signal: signal.Signals) -> list[str]:
    """The command line that starts a program through `launch.py`, which sees to it that it ends with us."""
    whom = (str(account.uid), str(account.gid)) if account else (launch.NOBODY_ELSE,) * 2
    program = shutil.which(argv[0])
    if program is None:
        raise FileNotFoundError(f"{argv[0]} is not there")
    words = (str(os.getpid()), str(int(stop_signal)), *whom, program, *argv[1:])
    return [sys.executable, "-I", "-S", launch.__file__, *words]


def _creation_time(pid: int) -> float:
    try:
        return psutil.Process(pid).create_time()
    except psutil.NoSuchProcess:
        return 0.0  # ended already
