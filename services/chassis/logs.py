"""Structured logs: one JSON object a line, with the call it belongs to, and no secrets or personal data."""

import dataclasses
import logging
import re
import sys
from datetime import UTC, datetime
from typing import Any

import orjson
from google.protobuf.message import Message

from services.chassis import context

REDACTED = "[redacted]"
_SENSITIVE_NAME = re.compile(
    r"passw|secret|token|authorization|cookie|credential|private|api[_-]?key|(^|_)code$|(^|_)otp$"
    r"|e_?mail|phone|(^|_)name$|address|iban|card",
    re.IGNORECASE,
)
_SENSITIVE_TEXT = re.compile(
    r"eyJ[\w-]{8,}\.[\w-]+\.[\w-]*"  # JWT
    r"|nxk_[0-9a-f]{16}_[\w-]+"  # API key
    r"|(?i:bearer)\s+[\w.~+/-]+=*"
    r"|[\w.+'-]+@[\w-]+\.[\w.-]+"  # e-mail address
    r"|(?<=://)[^/\s:@]*:[^/\s@]+(?=@)"  # user and password in a URL
)
_STANDARD = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime", "taskName"}


def configure(level: str, process: str) -> None:
    """Send all logs of this process to standard output."""
    handler = logging.StreamHandler(sys.stdout)
    handler.setFormatter(JsonFormatter(process))
    logging.basicConfig(level=level, handlers=[handler], force=True)
    logging.getLogger("httpx").setLevel(logging.WARNING)


class JsonFormatter(logging.Formatter):
    """`logger.info("what happened", extra={...})` as one line of JSON."""

    def __init__(self, process: str) -> None:
        super().__init__()
        self._process = process

    def format(self, record: logging.LogRecord) -> str:
        entry: dict[str, Any] = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname,
            "service": self._process,
            "logger": record.name,
            "message": redact_text(record.getMessage()),
        }
        call = context.current()
        if call is not None:
            entry |= {
                "service": call.method.service_id,
                "method": call.method.full_name,
                "request_id": call.request_id,
                "trace_id": call.trace_id,
                "tenant": call.tenant,
            }
            if call.signed_in is not None:
                entry["user_id"] = call.signed_in.user_id
        for name, value in vars(record).items():
            if name not in _STANDARD:
                entry[name] = redact(name, value)
        if record.exc_info:
            entry["exception"] = redact_text(self.formatException(record.exc_info))
        return orjson.dumps(entry, default=str).decode()


def redact(name: str, value: Any) -> Any:
    """The value as it may be logged under this name: plain data, without secrets."""
    if isinstance(value, bool) or value is None or value == "":
        return value
    if _SENSITIVE_NAME.search(name):
        return REDACTED
    if isinstance(value, int) and not -(2**63) <= value < 2**63:
        return str(value)
    if isinstance(value, int | float):
        return value
    if isinstance(value, dict):
        return {_clean(str(key)): redact(str(key), item) for key, item in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        return [redact(name, item) for item in value]
    if isinstance(value, Message):
        return f"<{value.DESCRIPTOR.full_name}>"  # what is in it is for the handler
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {field.name: redact(field.name, getattr(value, field.name)) for field in dataclasses.fields(value)}
    if isinstance(value, bytes | bytearray):
        return redact_text(value.decode(errors="replace"))
    return redact_text(str(value))


def _clean(text: str) -> str:
    """Text that JSON can carry: half a surrogate pair cannot be written as UTF-8."""
    return text.encode(errors="replace").decode()


def redact_text(text: str) -> str:
    """The text without tokens, e-mail addresses and passwords in URLs."""
    return _SENSITIVE_TEXT.sub(REDACTED, _clean(text))
