"""A log line is one JSON object without secrets and personal data, whatever it is given."""

import dataclasses
import json
import logging
import sys
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nexus.identity.auth_service.v1.auth_service_pb2 import LoginRequest
from services.chassis.logs import REDACTED, JsonFormatter, redact, redact_text

JWT = "eyJhbGciOiJFUzI1NiJ9.eyJzdWIiOiJhbm4ifQ.c2lnbmF0dXJl"
SENSITIVE = [
    "password",
    "current_password",
    "Passwd",
    "secret",
    "client_secret",
    "token",
    "access_token",
    "refreshToken",
    "authorization",
    "Authorization",
    "cookie",
    "credentials",
    "private_key",
    "api_key",
    "apikey",
    "code",
    "verification_code",
    "otp",
    "email",
    "e_mail",
    "phone",
    "phone_number",
    "name",
    "display_name",
    "ip_address",
    "iban",
    "card_number",
]
HARMLESS = st.sampled_from(["items", "detail", "reason", "seconds", "service", "x"])


def line(message: str = "said", *args: object, **extra: object) -> str:
    """What the formatter writes for `logger.info(message, *args, extra=extra)`, or `logger.exception(…)`."""
    logger = logging.getLogger("services.test")
    info = sys.exc_info()
    exception = info if info[0] is not None else None
    record = logger.makeRecord(logger.name, logging.INFO, "test.py", 1, message, args, exception, extra=extra)
    return JsonFormatter("user-auth").format(record)


def written(message: str = "said", *args: object, **extra: object) -> dict[str, Any]:
    entry: dict[str, Any] = json.loads(line(message, *args, **extra))
    return entry


def test_a_line_says_when_where_how_bad_and_what() -> None:
    entry = written("took %s s", 3, reason="EMAIL_TAKEN", attempts=2)
    time = entry.pop("time")
    assert time.endswith("+00:00")
    assert entry == {
        "level": "INFO",
        "service": "user-auth",
        "logger": "services.test",
        "message": "took 3 s",
        "reason": "EMAIL_TAKEN",
        "attempts": 2,
    }


def test_a_line_is_one_line() -> None:
    assert "\n" not in line("first\nsecond", detail="a\nb")


@pytest.mark.parametrize(
    ("text", "secret"),
    [
        (f"token {JWT} refused", JWT),
        ("header Authorization: Bearer abc.def-ghi_jkl=", "abc.def-ghi_jkl="),
        ("bearer QWxhZGRpbg==", "QWxhZGRpbg=="),
        ("mail to ann.o'neill+x@mail.example.com failed", "neill+x@mail.example.com"),
        ("connecting to postgresql://nexus:hunter2@db.internal:5432/nexus", "hunter2"),
        ("connecting to redis://:hunter2@broker:6379/0", "hunter2"),
        ("connecting to smtp://ann%40example.com:hunter2@mail:587", "hunter2"),
    ],
)
def test_text_loses_its_secrets(text: str, secret: str) -> None:
    assert secret not in redact_text(text)
    assert secret not in line(text)
    assert secret not in line("%s", text)
    assert secret not in line("said", detail={"list": [text]})


def test_text_without_secrets_is_left_as_it_is() -> None:
    text = "user 0197f0c1-2345-7abc-8def-0123456789ab at 10.0.0.1:3003, eyJ and @home, https://host/path?x=1"
    assert redact_text(text) == text


@pytest.mark.parametrize("name", SENSITIVE)
def test_a_sensitive_name_hides_its_value(name: str) -> None:
    assert redact(name, "hunter2") == REDACTED
    assert redact(name, ["hunter2"]) == REDACTED
    assert redact(name, {"value": "hunter2"}) == REDACTED
    assert redact(name, 123456) == REDACTED
    assert redact(name, b"hunter2") == REDACTED


@pytest.mark.parametrize("name", ["reason", "method", "tenant", "caller", "seconds", "codec", "status_code_class"])
def test_other_names_show_theirs(name: str) -> None:
    assert redact(name, "shown") == "shown"


@given(
    name=st.sampled_from(SENSITIVE),
    prefix=st.sampled_from(["", "user_", "old_"]),
    secret=st.from_regex(r"hunter2-[a-z0-9]{8}", fullmatch=True),
    data=st.data(),
)
def test_a_planted_secret_never_appears(name: str, prefix: str, secret: str, data: st.DataObject) -> None:
    def nest(inner: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
        return st.one_of(
            st.builds(lambda key, value: {key: value}, HARMLESS, inner),
            st.builds(lambda value: [value, 1], inner),
            st.builds(lambda value: (value,), inner),
        )

    own = prefix + name
    planted = st.sampled_from([{own: secret}, {own: [secret]}, {own: {"x": (secret,)}}, {own: secret.encode()}])
    value = data.draw(st.recursive(planted, nest, max_leaves=3))
    assert secret not in line("said", detail=value)
    if own != "name":  # logging itself refuses that one
        assert secret not in line("said", **{own: secret})


def test_an_exception_is_kept_without_its_secrets() -> None:
    try:
        try:
            raise ValueError(f"refused {JWT}")
        except ValueError as error:
            raise RuntimeError("no user ann@example.com") from error
    except RuntimeError:
        entry = json.loads(line("failed"))
    assert "ValueError" in entry["exception"]
    assert "RuntimeError" in entry["exception"]
    assert JWT not in entry["exception"]
    assert "ann@example.com" not in entry["exception"]


def test_an_object_is_written_without_its_secrets() -> None:
    @dataclasses.dataclass
    class Credentials:
        who: str
        password: str

    given = {
        "error": ValueError("no user ann@example.com"),
        "raw": b"Bearer abcdefgh",
        "credentials_of_call": Credentials("ann", "hunter2"),
        "attempt": Credentials("ann@example.com", "hunter2"),
        "request": LoginRequest(email="ann@example.com", password="hunter2"),
    }
    for name, value in given.items():
        text = line("said", **{name: value})
        for secret in ("ann@example.com", "abcdefgh", "hunter2"):
            assert secret not in text, f"{name}: {text}"


@given(
    value=st.recursive(
        st.none()
        | st.booleans()
        | st.integers()
        | st.floats()
        | st.text(st.characters(codec=None))
        | st.binary()
        | st.dates(),
        lambda inner: st.lists(inner) | st.dictionaries(st.text() | st.integers() | st.none(), inner),
        max_leaves=8,
    )
)
def test_nothing_that_is_logged_stops_the_log(value: object) -> None:
    assert json.loads(line("said", detail=value))["message"] == "said"
