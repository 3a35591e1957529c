"""The echo servers of the `chassis` benchmark: the same answer with and without the chassis.

python -m tests.bench.echo chassis|bare PORT     serve, and print a token for `chassis` once up
"""

import asyncio
import importlib
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import grpc
from joserfc import jwt
from joserfc.jwk import ECKey
from opentelemetry import trace

from mesh.local.platform import connected
from services.chassis import logs, server, telemetry
from services.chassis.config import Settings, load_settings
from services.chassis.ids import new_id
from services.chassis.signals import Signals
from services.chassis.spec import discover
from services.chassis.tokens import ALGORITHM

HERE = Path(__file__).parent
TENANT = "bench"


def compiled() -> Any:
    """The generated module of `echo.proto`."""
    from services.chassis.tools.generate import includes, run_protoc

    folder = Path(tempfile.mkdtemp(prefix="nexus-bench-"))
    run_protoc(*includes(HERE, folder), f"-I{HERE.parents[1] / 'proto'}", f"--python_out={folder}", "echo.proto")
    sys.path.insert(0, str(folder))
    return importlib.import_module("echo_pb2")


def token(settings: Settings, key: ECKey) -> str:
    now = int(time.time())
    claims = {
        "iss": settings.token_issuer,
        "aud": settings.token_audience,
        "sub": new_id(),
        "tid": TENANT,
        "sid": new_id(),
        "permissions": [],
        "iat": now,
        "exp": now + 3600,
    }
    return jwt.encode({"alg": ALGORITHM, "kid": "bench"}, claims, key, algorithms=[ALGORITHM])


async def serve_bare(port: int) -> None:
    pb = compiled()

    async def echo(request: Any, context: Any) -> Any:
        return pb.EchoResponse(text=request.text, number=request.number)

    bare = grpc.aio.server()
    handler = grpc.unary_unary_rpc_method_handler(echo, pb.EchoRequest.FromString, pb.EchoResponse.SerializeToString)
    bare.add_generic_rpc_handlers(
        (grpc.method_handlers_generic_handler("nexus.bench.echo.v1.EchoService", {"Echo": handler}),)
    )
    bare.add_insecure_port(f"127.0.0.1:{port}")
    await bare.start()
    print("ready", flush=True)
    await bare.wait_for_termination()


async def serve_chassis(port: int) -> None:
    pb = compiled()

    class EchoService:
        async def Echo(self, request: Any, call: Any) -> Any:
            return pb.EchoResponse(text=request.text, number=request.number)

    spec = discover()["token-mgr"]  # any: the bench borrows its database role
    platform = connected(load_settings(service_ids=discover()))
    settings = platform.model_copy(
        update={
            "port_offset": port - spec.port,
            "home": platform.home / "echo",
            "root_key_file": platform.home / "secrets" / "root.key",
        }
    )
    logs.configure("WARNING", "bench")
    trace.set_tracer_provider(telemetry.tracer_provider(settings, "bench"))
    key = ECKey.generate_key("P-256", {"kid": "bench"}, auto_kid=False)

    async def keys() -> Any:
        return {"keys": [key.as_dict(private=False)]}

    client = server._redis(settings)
    signals = Signals(client)
    await signals.start()
    service = server._service(settings, spec, client, signals)
    await service.database.start()
    descriptor = pb.DESCRIPTOR.services_by_name["EchoService"]
    running = server.RunningService(service, [(EchoService(), descriptor)], keys)
    await running.start()
    server.settle()
    print(token(settings, key), flush=True)
    await asyncio.Event().wait()


if __name__ == "__main__":
    kind, port = sys.argv[1], int(sys.argv[2])
    asyncio.run(serve_bare(port) if kind == "bare" else serve_chassis(port))
