"""Databases that a test starts itself, to freeze and to kill them: nobody brings them back but the test."""

import asyncio
import contextlib
import signal
import subprocess

import psutil

from mesh.local.embedded import Postgres, Redis


class Server:
    """A PostgreSQL or Redis of the test's own."""

    def __init__(self, database: Postgres | Redis) -> None:
        self._database = database
        self._running: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        return self._database.url

    async def start(self) -> None:
        """Start it, also again, and wait until it answers."""
        self._database.prepare()
        process = self._database.process()
        account = process.account
        self._running = subprocess.Popen(  # noqa: ASYNC220  it returns at once
            process.argv,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            env=dict(process.env),
            cwd=process.cwd,
            start_new_session=True,
            user=account.uid if account else None,
            group=account.gid if account else None,
            extra_groups=[] if account else None,
        )
        async with asyncio.timeout(20):
            while not await process.ready():  # noqa: ASYNC110  it tells only when asked
                await asyncio.sleep(0.05)

    def freeze(self) -> None:
        """It takes connections and says nothing more."""
        self._signal(signal.SIGSTOP)

    def thaw(self) -> None:
        self._signal(signal.SIGCONT)

    def kill(self) -> None:
        """It is gone at once."""
        if self._running is not None:
            self._signal(signal.SIGKILL)
            self._running.wait()
            self._running = None

    def _signal(self, number: signal.Signals) -> None:
        assert self._running is not None, "it has not been started"
        server = psutil.Process(self._running.pid)
        for process in (server, *server.children(recursive=True)):
            with contextlib.suppress(psutil.NoSuchProcess):
                process.send_signal(number)
