"""Passwords that were stolen elsewhere are refused, and no list of them learns which are asked about."""

import asyncio
import hashlib
from collections.abc import AsyncIterator
from dataclasses import dataclass, field

import pytest

from nexus.identity.user_auth.v1.faults import PasswordWeak
from services.chassis.config import ConfigError, load_service_config
from services.identity.user_auth.breaches import BreachedPasswords
from services.identity.user_auth.passwords import Policy, require_strong
from services.identity.user_auth.spec import Config

STOLEN, UNKNOWN = "correct horse battery staple 1", "a thing nobody else says 42"
POLICY = Policy(min_length=10, min_strength=2)


def digest(password: str) -> str:
    return hashlib.sha1(password.encode(), usedforsecurity=False).hexdigest().upper()


@dataclass
class Ranges:
    """A server of the range API."""

    url: str = ""
    lines: list[str] = field(default_factory=list)
    status: str = "200 OK"
    asked: list[str] = field(default_factory=list)

    async def answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = (await reader.readuntil(b"\r\n\r\n")).decode()
        self.asked.append(head)
        body = "\r\n".join(self.lines).encode()
        writer.write(f"HTTP/1.1 {self.status}\r\ncontent-length: {len(body)}\r\nconnection: close\r\n\r\n".encode())
        writer.write(body)
        await writer.drain()
        writer.close()


@pytest.fixture
async def ranges() -> AsyncIterator[Ranges]:
    served = Ranges()
    server = await asyncio.start_server(served.answer, "127.0.0.1", 0)
    served.url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/range/"
    yield served
    server.close()


async def test_a_stolen_password_is_refused_and_five_digits_are_all_that_is_told(ranges: Ranges) -> None:
    ranges.lines = ["0018A45C4D1DEF81644B54AB7F969B88D65:1", f"{digest(STOLEN)[5:]}:24"]
    breached = BreachedPasswords(ranges.url)
    with pytest.raises(PasswordWeak) as refused:
        await require_strong(STOLEN, POLICY, (), breached)
    assert "stolen" in refused.value.metadata["why"]
    await require_strong(UNKNOWN, POLICY, (), breached)
    assert [head.split()[1] for head in ranges.asked] == [
        f"/range/{digest(password)[:5]}" for password in (STOLEN, UNKNOWN)
    ]
    assert "add-padding: true" in ranges.asked[0].lower()
    assert not [head for head in ranges.asked if digest(STOLEN)[5:15] in head or STOLEN in head]


async def test_padding_and_other_hashes_refuse_nothing(ranges: Ranges) -> None:
    other = digest("another")[5:]
    ranges.lines = [f"{digest(STOLEN)[5:]}:0", f"{other}:99", "", "nonsense", f"{digest(STOLEN)[5:-1]}:3"]
    assert not await BreachedPasswords(ranges.url).has(STOLEN)
    ranges.lines.append(f"{digest(STOLEN)[5:].lower()}:3")
    assert await BreachedPasswords(ranges.url).has(STOLEN)


async def test_a_list_that_is_away_keeps_nobody_from_setting_a_password(ranges: Ranges) -> None:
    ranges.lines, ranges.status = [f"{digest(STOLEN)[5:]}:24"], "503 Service Unavailable"
    assert not await BreachedPasswords(ranges.url).has(STOLEN)
    assert not await BreachedPasswords("http://127.0.0.1:9/range").has(STOLEN)
    with pytest.raises(PasswordWeak):
        await require_strong("password123", POLICY, (), BreachedPasswords("http://127.0.0.1:9/range"))


def test_where_to_ask_is_a_setting_of_the_service() -> None:
    name = "NEXUS_USER_AUTH_BREACHED_PASSWORDS_URL"
    assert load_service_config(Config, "user-auth", {}).breached_passwords_url is None
    url = "https://api.pwnedpasswords.com/range/"
    assert load_service_config(Config, "user-auth", {name: url}).breached_passwords_url == url
    with pytest.raises(ConfigError, match="BREACHED_PASSWORDS_URL"):
        load_service_config(Config, "user-auth", {name: "ftp://x"})
