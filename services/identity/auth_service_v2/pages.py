"""The pages: HTML that needs no script, under a policy that allows none but our own (Content Security Policy, level 3).

Only passkeys need one: WebAuthn has no other interface.
"""

import base64
import hashlib
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from services.identity.auth_service_v2.replies import Reply

_FOLDER = Path(__file__).parent / "templates"
_STYLE = (_FOLDER / "style.css").read_text()
_TEMPLATES = Environment(loader=FileSystemLoader(_FOLDER), autoescape=True, undefined=StrictUndefined)


def page(
    template: str, *, status: int = 200, returns_to: str = "", problem: str = "", script: str = "", **values: Any
) -> Reply:
    """A page. A form on it may lead, by way of redirects, to the site of `returns_to` (a URI) and to ourselves."""
    html = _TEMPLATES.get_template(f"{template}.html").render(style=_STYLE, problem=problem, script=script, **values)
    code = _TEMPLATES.get_template(script).render() if script else ""
    policy = (
        f"default-src 'none'; style-src {_source(_STYLE)}; base-uri 'none'; frame-ancestors 'none'; "
        f"form-action {' '.join(_sites(returns_to))}" + (f"; script-src {_source(code)}" if code else "")
    )
    return Reply(
        status,
        html.encode(),
        headers=(("content-security-policy", policy), ("cache-control", "no-store")),
    )


def _source(inline: str) -> str:
    """What allows this very text."""
    return f"'sha256-{base64.b64encode(hashlib.sha256(inline.encode()).digest()).decode()}'"


def message(heading: str, text: str, status: int = 200) -> Reply:
    return page("message", status=status, heading=heading, text=text)


def _sites(returns_to: str) -> list[str]:
    """CSP sources: ourselves and the site of a URI. Browsers hold redirects after a form against them."""
    parts = urlsplit(returns_to)
    if parts.scheme in ("https", "http"):
        return ["'self'", f"{parts.scheme}://{parts.netloc}"]
    return ["'self'", f"{parts.scheme}:"] if parts.scheme else ["'self'"]
