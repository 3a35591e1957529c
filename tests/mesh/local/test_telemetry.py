"""What a platform tells of its calls: numbers for Prometheus, and a line of JSON for each request."""

import json
from datetime import datetime, timedelta
from typing import Any

import httpx
from prometheus_client.parser import text_string_to_metric_families

from mesh.local.supervisor import read_state
from services.chassis import clock
from services.chassis.ids import new_id
from tests.platforms import Platform, Tenant, eventually

ME = "GetMe"
SCRAPED = [
    *("nexus_call_seconds_count", "nexus_call_seconds_sum", "nexus_client_call_seconds_count"),
    *("nexus_breaker_open", "nexus_dependency_up"),
]
"""All of them, with every bucket of every method, would take many seconds to read."""


async def test_calls_are_counted_for_prometheus(platform: Platform, tenant: Tenant, http: httpx.AsyncClient) -> None:
    user = await tenant.sign_in()
    served = {"service": "auth-service", "method": ME, "code": "OK"}
    onward = {"service": "auth-service", "callee": "user-auth", "code": "OK"}
    before = scraped(platform)
    for _ in range(3):
        assert (await http.get("/api/v1/auth/me", headers=user.headers)).status_code == 200
    after = scraped(platform)

    assert count(after, "nexus_call_seconds_count", served) - count(before, "nexus_call_seconds_count", served) >= 3
    assert count(after, "nexus_call_seconds_sum", served) > count(before, "nexus_call_seconds_sum", served)
    called = "nexus_client_call_seconds_count"
    assert count(after, called, onward) - count(before, called, onward) >= 3
    assert {each.labels["callee"] for each in after if each.name == "nexus_breaker_open"} >= {
        "user-auth",
        "session-mgr",
    }
    for dependency in ("database", "broker"):
        up = {"service": "user-auth", "dependency": dependency}
        assert count(after, "nexus_dependency_up", up) == 1, dependency


async def test_a_request_is_a_line_of_json(platform: Platform, tenant: Tenant, http: httpx.AsyncClient) -> None:
    user, asked = await tenant.sign_in(), new_id()
    began = clock.now()
    headers = {**user.headers, "x-request-id": asked}
    answer = await http.get("/api/v1/auth/me", params={"email": "ann@example.com"}, headers=headers)
    request_id = answer.headers["x-request-id"]

    line = eventually(lambda: logged(platform, request_id))

    assert timedelta(seconds=-1) < datetime.fromisoformat(line.pop("time")) - began < timedelta(minutes=1)
    assert 0 <= line.pop("milliseconds") < 60_000
    assert line.pop("bytes_out") == len(answer.content)
    assert line.pop("details")
    expected: dict[str, Any] = {
        "service": "edge",
        "request_id": request_id,
        "http_method": "GET",
        "path": "/api/v1/auth/me",
    }
    expected |= {"protocol": "HTTP/1.1", "status": answer.status_code, "client": "127.0.0.1", "bytes_in": 0}
    assert expected.items() <= line.items()
    assert not {"ann@example.com", user.access_token} & set(map(str, line.values()))


def scraped(platform: Platform) -> list[Any]:
    """The samples of all processes of the platform."""
    found = []
    state = read_state(platform.settings.run_dir)
    assert state is not None
    ports = [process.ports["metrics"] for process in state.processes if "metrics" in process.ports]
    assert len(ports) > 1, "one of each domain"
    for port in ports:
        answer = httpx.get(f"http://127.0.0.1:{port}/metrics", params={"name[]": SCRAPED}, timeout=10)
        assert answer.status_code == 200
        assert answer.headers["content-type"].startswith("text/plain")
        found += [sample for family in text_string_to_metric_families(answer.text) for sample in family.samples]
    return found


def count(samples: list[Any], name: str, labels: dict[str, str]) -> float:
    """The sum of what has these labels."""
    return sum(each.value for each in samples if each.name == name and labels.items() <= each.labels.items())


def logged(platform: Platform, request_id: str) -> dict[str, Any]:
    """The edge's line about a request, once it is there."""
    lines = (platform.home / "logs" / "edge.log").read_text().splitlines()
    found = [line for line in lines if request_id in line]
    entry: dict[str, Any] = json.loads(found[0]) if found else {}
    return entry
