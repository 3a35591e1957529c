"""`chassis`: an echo through the full chassis (signed in, validated, measured, 10 % traced) beside bare grpc.aio."""

import asyncio
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from services.chassis.tenants import create_tenant
from tests.bench import echo
from tests.bench.measure import Result, compare, h2load
from tests.platforms import Platform, free_offset

CALLS = 10_000
PATH = "/nexus.bench.echo.v1.EchoService/Echo"


def run(platform: Platform) -> Result:
    asyncio.run(_create_tenant(platform))
    port = free_offset()
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        token = stack.enter_context(_server(platform, "chassis", port))
        stack.enter_context(_server(platform, "bare", port + 1))
        body = folder / "body"
        message = echo.compiled().EchoRequest(text="hello", number=7).SerializeToString()
        body.write_bytes(b"\0" + len(message).to_bytes(4, "big") + message)
        headers = {"content-type": "application/grpc", "te": "trailers", "authorization": f"Bearer {token}"}
        return compare(
            "chassis",
            "calls/s",
            "≥ 0.60",
            lambda: h2load(f"http://127.0.0.1:{port}{PATH}", body, headers, calls=CALLS),
            lambda: h2load(f"http://127.0.0.1:{port + 1}{PATH}", body, headers, calls=CALLS),
        )


@contextmanager
def _server(platform: Platform, kind: str, port: int) -> Iterator[str]:
    """A server process; yields the line that it prints once it serves."""
    process = subprocess.Popen(
        [sys.executable, "-m", "tests.bench.echo", kind, str(port)],
        env=platform.environment,
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        assert process.stdout is not None
        line = process.stdout.readline().strip()
        assert line, f"the {kind} server did not start"
        yield line
    finally:
        process.terminate()
        process.wait()


async def _create_tenant(platform: Platform) -> None:
    admin = await platform.admin()
    try:
        await create_tenant(admin, echo.TENANT, "Benchmark")
    finally:
        await admin.close()
