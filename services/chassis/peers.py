"""Who is calling, as the mesh proved it: the SPIFFE id in `x-forwarded-client-cert`.

Only the proxy in front of a service can be believed about that, so the header counts only on connections that
come from it: the service's unix socket on one machine, the sidecar's address on Kubernetes.
"""

import re
from urllib.parse import unquote

from services.chassis.config import Settings

XFCC = "x-forwarded-client-cert"
API_KEY = "x-api-key"
VERSION_HEADER = "x-nexus-version"
"""Names the version of the services that a call wants to meet, all the way down."""
MESH_REPLY = "x-nexus-mesh"
"""Marks what a proxy says in a service's place: "undelivered" where the service never saw the call, else "failed"."""
_URI = re.compile(r'(?:^|;)URI="?([^;,"]+)"?')


class PeerIdentifier:
    """Reads the calling service's id off a call."""

    def __init__(self, settings: Settings) -> None:
        proxies = [proxy.strip() for proxy in settings.trusted_proxies.split(",")]
        self._trusted = tuple(
            "unix:" if proxy == "unix" else f"ipv6:%5B{proxy}%5D:" if ":" in proxy else f"ipv4:{proxy}:"
            for proxy in proxies
        )
        self._prefix = settings.spiffe_id("")

    def caller(self, peer: str, forwarded: str | None) -> str | None:
        """The service id behind a connection, or None for a caller outside the mesh.

        `peer` is gRPC's name of the connection, `forwarded` the header's value.
        """
        if forwarded is None or not peer.startswith(self._trusted):
            return None
        # The last element is the one that our own proxy added.
        match = _URI.search(forwarded.rsplit(",", 1)[-1])
        if match is None:
            return None
        identity = unquote(match[1])
        return identity.removeprefix(self._prefix) if identity.startswith(self._prefix) else None
