"""Forms as browsers and OAuth clients send them."""

from collections.abc import Collection

from authlib.common.urls import url_decode
from authlib.oauth2 import OAuth2Error
from google.api.httpbody_pb2 import HttpBody

MAX_BYTES = 65_536
_MAY_REPEAT = frozenset({"audience", "resource"})
"""RFC 8693, section 2.1."""


class Form(dict[str, str]):
    """The fields of a form; one without a value counts as absent (RFC 6749, section 3.2)."""

    def __init__(self, body: HttpBody) -> None:
        """Raises OAuth2Error for what is not a form, and for fields that come twice."""
        super().__init__()
        self.repeated: dict[str, list[str]] = {}
        media_type = body.content_type.partition(";")[0].strip().lower()
        if body.data and media_type != "application/x-www-form-urlencoded":
            raise OAuth2Error("send application/x-www-form-urlencoded", error="invalid_request")
        if len(body.data) > MAX_BYTES:
            raise OAuth2Error("the form is too long", error="invalid_request")
        try:
            fields = url_decode(body.data.decode())
        except ValueError:
            raise OAuth2Error("the form cannot be read", error="invalid_request") from None
        for name, value in fields:
            self._add(name, value, _MAY_REPEAT)

    def _add(self, name: str, value: str, may_repeat: Collection[str]) -> None:
        if name in self and name not in may_repeat:
            raise OAuth2Error("a parameter comes twice", error="invalid_request")
        if value:
            self[name] = value
            self.repeated.setdefault(name, []).append(value)

    def require(self, name: str) -> str:
        if name not in self:
            raise OAuth2Error(f"{name} is missing", error="invalid_request")
        return self[name]
