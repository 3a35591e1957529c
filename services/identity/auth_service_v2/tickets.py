"""Tickets: what must come back unchanged and unread, sealed instead of stored. Codes, open pages, session cookies."""

import base64
import binascii
import json
from collections.abc import Mapping
from datetime import timedelta
from typing import Any

from services.chassis.clock import now
from services.chassis.sealing import SealBroken, Sealer

CODE = "code"
SIGN_IN = "sign-in page"
SECOND_FACTOR = "second-factor page"
CONSENT = "consent page"
DEVICE = "device page"
SIGN_OUT = "sign-out page"
SSO = "sso state"
SESSION = "session cookie"


class Tickets:
    """Seals and opens tickets. One opens only as the kind it was issued as, and for its tenant."""

    def __init__(self, sealer: Sealer) -> None:
        self._sealer = sealer

    def issue(self, kind: str, tenant_id: str, content: Mapping[str, Any], lifetime: timedelta) -> str:
        """Text that is safe in URLs, headers and cookies."""
        expires = (now() + lifetime).timestamp()
        sealed = self._sealer.seal(json.dumps({**content, "expires": expires}).encode(), f"{kind} {tenant_id}")
        return base64.urlsafe_b64encode(sealed).rstrip(b"=").decode()

    def read(self, kind: str, tenant_id: str, ticket: str) -> dict[str, Any] | None:
        """The content, with the moment it `expires` in seconds since the epoch; None if it is not good."""
        try:
            sealed = base64.b64decode(ticket.encode() + b"=" * (-len(ticket) % 4), altchars=b"-_", validate=True)
            content: dict[str, Any] = json.loads(self._sealer.open(sealed, f"{kind} {tenant_id}"))
        except (SealBroken, binascii.Error, ValueError):
            return None
        return content if content["expires"] > now().timestamp() else None
