"""Page tokens: opaque, bound to the method and the query they were made for (AIP-158)."""

import base64
import binascii
from collections.abc import Awaitable, Callable
from typing import Any, TypeVar

from google.protobuf.message import Message

from nexus.type.v1.faults import PageTokenInvalid
from services.chassis.context import RequestContext
from services.chassis.sealing import SealBroken, Sealer

DEFAULT_PAGE_SIZE = 100
T = TypeVar("T")


class Pager:
    """Makes and reads the page tokens of one service."""

    def __init__(self, sealer: Sealer) -> None:
        self._sealer = sealer

    async def page(
        self,
        request: Any,
        call: RequestContext,
        fetch: Callable[[str, int], Awaitable[list[T]]],
        by: str | Callable[[T], object],
    ) -> tuple[list[T], str]:
        """A page, and the token of the next one, "" after the last.

        `fetch(after, limit)` gives the rows after a cursor, "" for the first ones; `by` is the column of a row, or else
        what gives it, that is the cursor when the row is the last of its page. Raises PageTokenInvalid.
        """
        size = self.size(request)
        found = await fetch(self.cursor(request, call), size + 1)
        if len(found) <= size:
            return found, ""
        last: Any = found[size - 1]
        return found[:size], self.token(request, call, str(by(last) if callable(by) else last[by]))

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
