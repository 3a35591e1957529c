"""Page tokens: opaque, bound to the method and the query they were made for (AIP-158)."""

import base64
import binascii
from typing import Any

from google.protobuf.message import Message

from nexus.type.v1.faults import PageTokenInvalid
from services.chassis.context import RequestContext
from services.chassis.sealing import SealBroken, Sealer

DEFAULT_PAGE_SIZE = 100


class Pager:
    """Makes and reads the page tokens of one service."""

    def __init__(self, sealer: Sealer) -> None:
        self._sealer = sealer

    def cursor(self, request: Any, call: RequestContext) -> str:
        """Where the page starts: what `token` was given for it, or "" for the first page.

        Raises PageTokenInvalid for a token of another query.
        """
        if not request.page_token:
            return ""
        try:
            sealed = base64.urlsafe_b64decode(request.page_token.encode() + b"==")
            return self._sealer.open(sealed, _purpose(request, call)).decode()
        except (SealBroken, binascii.Error, ValueError):
            raise PageTokenInvalid() from None

    def token(self, request: Any, call: RequestContext, cursor: str) -> str:
        """The token of the page that starts at `cursor`."""
        sealed = self._sealer.seal(cursor.encode(), _purpose(request, call))
        return base64.urlsafe_b64encode(sealed).rstrip(b"=").decode()

    @staticmethod
    def size(request: Any) -> int:
        return request.page_size or DEFAULT_PAGE_SIZE


def _purpose(request: Message, call: RequestContext) -> str:
    query = type(request)()
    query.CopyFrom(request)
    for field in ("page_token", "page_size"):
        query.ClearField(field)
    text = base64.b64encode(query.SerializeToString(deterministic=True)).decode()
    return f"page {call.method.full_name} {call.tenant} {text}"
