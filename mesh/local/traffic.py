"""What the mesh does to traffic beyond the contracts: injected faults, canaries, mirrors. Changed while it runs.

The proxies are built with a runtime key for each; `nexus fault` and `nexus traffic` set the keys over the proxies'
admin sockets. Nothing is kept: a fault does not outlive the proxy it was put into.
"""

from collections.abc import Mapping

import httpx
from grpc import StatusCode
from pydantic import BaseModel, Field

from edge.layout import canary_share, mirror_share
from mesh.local.supervisor import PlatformError
from services.chassis.config import Settings

PROXIES = ("mesh", "edge")
LONGEST_DELAY_MS = 60_000


class Fault(BaseModel):
    """Some share of the calls to a service fails, or waits, or waits and then fails."""

    abort: str | None = None
    """gRPC status name: "UNAVAILABLE"."""
    delay_ms: int | None = Field(default=None, gt=0, le=LONGEST_DELAY_MS)
    percent: int = Field(default=100, ge=0, le=100)

    def keys(self, service: str) -> dict[str, int]:
        """The runtime keys that put it into effect."""
        names = fault_keys(service)
        return {
            names["abort"]: self.percent if self.abort else 0,
            names["status"]: StatusCode[self.abort].value[0] if self.abort else 0,
            names["delay"]: self.percent if self.delay_ms else 0,
            names["duration"]: self.delay_ms or 0,
        }


def fault_keys(service: str) -> dict[str, str]:
    return {part: f"nexus.fault.{service}.{part}" for part in ("abort", "status", "delay", "duration")}


def faults(settings: Settings) -> dict[str, Fault]:
    """The faults in effect, by service."""
    keys = _read(settings, "mesh")
    services = sorted({key.split(".")[2] for key in keys if key.startswith("nexus.fault.")})
    found = {}
    for service in services:
        names = fault_keys(service)
        percent = max(keys.get(names["abort"], 0), keys.get(names["delay"], 0))
        if percent:
            status = next(code.name for code in StatusCode if code.value[0] == keys.get(names["status"], 0))
            found[service] = Fault(
                abort=status if keys.get(names["abort"]) else None,
                delay_ms=keys.get(names["duration"]) or None,
                percent=percent,
            )
    return found


def inject(settings: Settings, service: str, fault: Fault) -> None:
    _write(settings, "mesh", fault.keys(service))


def clear_faults(settings: Settings, service: str | None = None) -> None:
    """Take out one service's faults, or all."""
    for each in faults(settings):
        if service in (None, each):
            _write(settings, "mesh", Fault().keys(each))


def split(settings: Settings, service: str, canary_percent: int, mirror_percent: int) -> None:
    """Divide the calls to a service between its two versions, whoever makes them."""
    for proxy in PROXIES:
        _write(settings, proxy, {canary_share(service): canary_percent, mirror_share(service): mirror_percent})


def clear_splits(settings: Settings) -> None:
    for proxy in PROXIES:
        shares = {key: 0 for key in _read(settings, proxy) if key.startswith("nexus.traffic.")}
        _write(settings, proxy, shares)


def _read(settings: Settings, proxy: str) -> dict[str, int]:
    entries = _admin(settings, proxy, "GET", "/runtime", {"format": "json"}).json()["entries"]
    return {key: int(entry["final_value"] or 0) for key, entry in entries.items() if key.startswith("nexus.")}


def _write(settings: Settings, proxy: str, keys: Mapping[str, int]) -> None:
    if keys:
        _admin(settings, proxy, "POST", "/runtime_modify", {key: str(value) for key, value in keys.items()})


def _admin(settings: Settings, proxy: str, method: str, path: str, parameters: Mapping[str, str]) -> httpx.Response:
    transport = httpx.HTTPTransport(uds=str(settings.run_dir / f"{proxy}-admin.sock"))
    try:
        with httpx.Client(transport=transport, base_url="http://admin", timeout=5) as client:
            return client.request(method, path, params=dict(parameters)).raise_for_status()
    except httpx.HTTPError as error:
        raise PlatformError(f"The {proxy} proxy does not take the change: {error}") from error
