"""A token that token-mgr did not sign for us, now, is refused; and nothing that is sent breaks the verifier."""

import asyncio
import base64
import hashlib
import hmac
import json
import time
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from joserfc import jws, jwt
from joserfc.jwk import ECKey, RSAKey

from nexus.type.v1.faults import DeadlineExceeded, DependencyUnavailable, TokenExpired, TokenInvalid
from services.chassis import tokens
from services.chassis.config import Settings
from services.chassis.errors import Fault
from services.chassis.tokens import TokenVerifier

SETTINGS = Settings()
USER, TENANT, SESSION = "user-1", "acme", "session-1"


class Signals:
    """What a verifier asks of the real ones."""

    def __init__(self) -> None:
        self.up_to_date = True
        self.ended: set[str] = set()

    async def wait_up_to_date(self, seconds: float) -> bool:
        return self.up_to_date

    def session_ended(self, session_id: str) -> bool:
        return session_id in self.ended


class Keys:
    """token-mgr's keys, and how it answers when asked for them."""

    def __init__(self) -> None:
        self.published = [key("first")]
        self.asked = 0
        self.failure: Fault | None = None

    async def __call__(self) -> dict[str, Any]:
        self.asked += 1
        if self.failure is not None:
            raise self.failure
        return {"keys": [published.as_dict(private=False) for published in self.published]}


def key(kid: str) -> ECKey:
    return ECKey.generate_key("P-256", {"kid": kid, "alg": "ES256", "use": "sig"}, auto_kid=False)


class Time:
    """The verifier's clock."""

    def __init__(self) -> None:
        self.passed = 0.0

    def time(self) -> float:
        return time.time() + self.passed

    def monotonic(self) -> float:
        return time.monotonic() + self.passed


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Time:
    clock = Time()
    monkeypatch.setattr(tokens, "time", SimpleNamespace(time=clock.time, monotonic=clock.monotonic))
    return clock


@pytest.fixture
def keys() -> Keys:
    return Keys()


@pytest.fixture
def signals() -> Signals:
    return Signals()


@pytest.fixture
def verifier(keys: Keys, signals: Signals) -> TokenVerifier:
    return TokenVerifier(SETTINGS, signals, keys)  # type: ignore[arg-type]


def claims(**changes: Any) -> dict[str, Any]:
    """What a good token says; a claim set to None is left out."""
    now = int(time.time())
    good = {
        "iss": SETTINGS.token_issuer,
        "aud": SETTINGS.token_audience,
        "sub": USER,
        "tid": TENANT,
        "sid": SESSION,
        "permissions": ["users.read"],
        "iat": now,
        "exp": now + 600,
    }
    return {name: value for name, value in (good | changes).items() if value is not None}


def signed(by: Any, alg: str = "ES256", kid: str | None = None, **changes: Any) -> str:
    header: dict[str, Any] = {"alg": alg, "typ": "JWT"}
    kid = kid if kid is not None else by.kid
    if kid:
        header["kid"] = kid
    return jwt.encode(header, claims(**changes), by, algorithms=[alg])


def unsigned(header: dict[str, Any], signature: str = "") -> str:
    def part(value: dict[str, Any]) -> str:
        return base64.urlsafe_b64encode(json.dumps(value).encode()).rstrip(b"=").decode()

    return f"{part(header)}.{part(claims())}.{signature}"


async def refused(verifier: TokenVerifier, token: str) -> bool:
    try:
        await verifier.verify(token)
    except TokenInvalid:
        return True
    return False


async def test_a_good_token_is_its_user(verifier: TokenVerifier, keys: Keys) -> None:
    user = await verifier.verify(signed(keys.published[0]))
    assert (user.user_id, user.tenant_id, user.session_id) == (USER, TENANT, SESSION)
    assert user.permissions == {"users.read"}
    assert user.may("users.read")
    assert not user.may("users.write")


async def test_the_star_permits_everything(verifier: TokenVerifier, keys: Keys) -> None:
    assert (await verifier.verify(signed(keys.published[0], permissions=["*"]))).may("anything")


async def test_a_token_without_permissions_has_none(verifier: TokenVerifier, keys: Keys) -> None:
    assert (await verifier.verify(signed(keys.published[0], permissions=None))).permissions == frozenset()


@pytest.mark.parametrize("alg", ["none", "None", "NONE", ""])
async def test_a_token_without_a_signature_is_refused(verifier: TokenVerifier, keys: Keys, alg: str) -> None:
    good = signed(keys.published[0])
    assert await refused(verifier, unsigned({"alg": alg, "kid": "first"}))
    assert await refused(verifier, unsigned({"alg": alg}))
    assert await refused(verifier, unsigned({"alg": alg, "kid": "first"}, good.rpartition(".")[2]))
    assert await refused(verifier, good.rpartition(".")[0] + ".")


async def test_the_public_key_is_not_a_shared_secret(verifier: TokenVerifier, keys: Keys) -> None:
    public = keys.published[0]
    for secret in (
        public.as_pem(private=False),
        public.as_pem(private=False).strip(),
        public.as_der(private=False),
        json.dumps(public.as_dict(private=False)).encode(),
        str(public.as_dict(private=False)["x"]).encode(),
        b"",
    ):
        body = unsigned({"alg": "HS256", "kid": "first"}).rstrip(".")
        signature = hmac.digest(secret, body.encode(), hashlib.sha256)
        assert await refused(verifier, f"{body}.{base64.urlsafe_b64encode(signature).rstrip(b'=').decode()}")


async def test_a_key_of_the_attackers_own_is_not_looked_at(verifier: TokenVerifier) -> None:
    theirs = key("first")
    assert await refused(verifier, signed(theirs))
    carried = {"alg": "ES256", "kid": "first", "jwk": theirs.as_dict(private=False)}
    token = jws.serialize_compact(
        carried, json.dumps(claims()).encode(), theirs, registry=jws.JWSRegistry(algorithms=["ES256"])
    )
    assert await refused(verifier, token)
    rsa = RSAKey.generate_key(2048, {"kid": "first"}, auto_kid=False)
    assert await refused(verifier, signed(rsa, alg="RS256", kid="first"))


@pytest.mark.parametrize(
    "changes",
    [
        {"iss": "https://evil.example"},
        {"iss": SETTINGS.token_issuer + "/"},
        {"aud": "other"},
        {"aud": ["other", "another"]},
        {"aud": []},
        {"aud": ""},
        {"nbf": int(time.time()) + 3600},
        {"iat": int(time.time()) + 3600},
        {"iat": "yesterday"},
        {"exp": "tomorrow"},
        {"exp": [1]},
        {"sub": 7},
        {"permissions": 7},
        *({name: None} for name in ("iss", "aud", "sub", "tid", "sid", "exp", "iat")),
        *({name: ""} for name in ("iss", "sub", "tid", "sid")),
    ],
    ids=lambda changes: next(iter(changes)),  # the same in every worker, whatever the time
)
async def test_a_well_signed_token_with_wrong_claims_is_refused(
    verifier: TokenVerifier, keys: Keys, changes: dict[str, Any]
) -> None:
    assert await refused(verifier, signed(keys.published[0], **changes))


async def test_a_token_past_its_expiry_is_expired(verifier: TokenVerifier, keys: Keys) -> None:
    now = int(time.time())
    for expires in (now, now - 1, now - 10**6, 0):
        with pytest.raises(TokenExpired):
            await verifier.verify(signed(keys.published[0], exp=expires, iat=expires - 600))


async def test_a_forged_token_past_its_expiry_is_invalid_rather_than_expired(verifier: TokenVerifier) -> None:
    assert await refused(verifier, signed(key("first"), exp=1))


async def test_a_remembered_token_expires_on_time(verifier: TokenVerifier, keys: Keys) -> None:
    expires = int(time.time()) + 2
    token = signed(keys.published[0], exp=expires)

    async def use_it_until(end: float) -> None:
        while time.time() < end:
            await verifier.verify(token)
            await asyncio.sleep(0.05)

    with pytest.raises(TokenExpired):
        await use_it_until(expires + 5)
    assert expires <= time.time() < expires + 1


async def test_an_ended_session_ends_its_remembered_tokens(
    verifier: TokenVerifier, keys: Keys, signals: Signals
) -> None:
    token = signed(keys.published[0])
    await verifier.verify(token)
    signals.ended.add(SESSION)
    assert await refused(verifier, token)


async def test_no_token_is_trusted_while_ended_sessions_cannot_be_known(
    verifier: TokenVerifier, keys: Keys, signals: Signals
) -> None:
    token = signed(keys.published[0])
    await verifier.verify(token)
    signals.up_to_date = False
    with pytest.raises(DependencyUnavailable):
        await verifier.verify(token)
    signals.up_to_date = True
    await verifier.verify(token)


async def test_a_token_signed_with_a_new_key_is_good_at_once(verifier: TokenVerifier, keys: Keys, clock: Time) -> None:
    await verifier.verify(signed(keys.published[0]))
    keys.published.append(key("second"))
    clock.passed = 1.5
    await verifier.verify(signed(keys.published[1]))
    await verifier.verify(signed(keys.published[0], sub="user-2"))


async def test_unknown_keys_make_nobody_ask_more_than_once_a_second(
    verifier: TokenVerifier, keys: Keys, clock: Time
) -> None:
    await verifier.verify(signed(keys.published[0]))
    clock.passed = 1.5
    for attempt in range(50):
        assert await refused(verifier, signed(key(f"made-up-{attempt}")))
    assert keys.asked == 2


async def test_a_removed_key_stops_verifying_even_what_is_remembered(
    verifier: TokenVerifier, keys: Keys, clock: Time
) -> None:
    old, new = keys.published[0], key("second")
    await verifier.verify(signed(old))
    clock.passed = 30
    token = signed(old, sub="user-3")
    await verifier.verify(token)  # remembered until 90
    keys.published = [new]
    clock.passed = 61
    await verifier.verify(signed(new))
    assert await refused(verifier, token)
    assert await refused(verifier, signed(old, sub="user-2"))


async def test_known_keys_still_verify_while_their_source_is_away(
    verifier: TokenVerifier, keys: Keys, clock: Time
) -> None:
    await verifier.verify(signed(keys.published[0]))
    clock.passed = 61
    keys.failure = DependencyUnavailable(dependency="token-mgr")
    await verifier.verify(signed(keys.published[0], sub="user-2"))
    assert await refused(verifier, signed(key("first")))


async def test_known_keys_still_verify_while_their_source_hangs(
    verifier: TokenVerifier, keys: Keys, clock: Time
) -> None:
    await verifier.verify(signed(keys.published[0]))
    clock.passed = 61
    keys.failure = DeadlineExceeded(seconds="few")
    await verifier.verify(signed(keys.published[0], sub="user-2"))


async def test_without_any_keys_nobody_can_say(verifier: TokenVerifier, keys: Keys) -> None:
    token = signed(keys.published[0])
    keys.failure = DependencyUnavailable(dependency="token-mgr")
    with pytest.raises(DependencyUnavailable):
        await verifier.verify(token)
    keys.failure = None
    await verifier.verify(token)


async def test_a_token_is_verified_once_and_then_remembered(verifier: TokenVerifier, keys: Keys, clock: Time) -> None:
    token = signed(keys.published[0])
    first = await verifier.verify(token)
    keys.failure = DependencyUnavailable(dependency="token-mgr")
    clock.passed = 59
    assert await verifier.verify(token) is first
    clock.passed = 61
    assert await verifier.verify(token) is not first


@pytest.mark.parametrize(
    "token",
    ["", " ", ".", "..", "...", "a.b.c", "eyJ.eyJ.eyJ", "\0", "é", "\ud800", "a" * 2**20, "." * 2**20, "e30.e30.e30"],
    ids=lambda token: f"{token[:12]!r} of {len(token)}",
)
async def test_garbage_is_refused(verifier: TokenVerifier, token: str) -> None:
    assert await refused(verifier, token)


async def test_a_well_signed_token_of_a_megabyte_is_refused_and_not_remembered(
    verifier: TokenVerifier, keys: Keys
) -> None:
    token = signed(keys.published[0], filler="x" * 2**20)
    assert await refused(verifier, token)
    assert keys.asked == 0


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=5,
)


def _encoded(value: object) -> str:
    return base64.urlsafe_b64encode(json.dumps(value).encode()).rstrip(b"=").decode()


HEADERS = st.fixed_dictionaries(
    {},
    optional={
        "alg": JSON | st.sampled_from(["ES256", "none", "HS256", "ES384", "RS256", "EdDSA", "dir"]),
        "kid": JSON | st.just("first"),
        "typ": JSON,
        "crit": JSON,
        "b64": JSON,
        "zip": st.just("DEF"),
        "jwk": JSON,
        "x5c": JSON,
        "enc": st.just("A128GCM"),
    },
)
SEGMENT = st.text("abcABC019-_=", max_size=12) | JSON.map(_encoded) | HEADERS.map(_encoded)
TOKENS = st.one_of(
    st.text(),
    st.builds("{}.{}.{}".format, HEADERS.map(_encoded), SEGMENT, SEGMENT),
    st.lists(SEGMENT, max_size=6).map(".".join),
)


@pytest.fixture(scope="module")
def fuzzed() -> TokenVerifier:
    return TokenVerifier(SETTINGS, Signals(), Keys())  # type: ignore[arg-type]


@given(token=TOKENS)
@hypothesis_settings(max_examples=300, deadline=None)
async def test_whatever_is_sent_is_invalid_or_expired(fuzzed: TokenVerifier, token: str) -> None:
    with pytest.raises((TokenInvalid, TokenExpired)):
        await fuzzed.verify(token)


@given(changes=st.dictionaries(st.sampled_from(["iss", "aud", "sub", "tid", "sid", "exp", "iat", "nbf"]), JSON))
@hypothesis_settings(max_examples=150, deadline=None)
async def test_whatever_is_well_signed_is_a_user_or_invalid_or_expired(changes: dict[str, Any]) -> None:
    keys = Keys()
    verifier = TokenVerifier(SETTINGS, Signals(), keys)  # type: ignore[arg-type]
    try:
        token = signed(keys.published[0], **changes)
    except (TypeError, ValueError):
        return
    try:
        user = await verifier.verify(token)
    except (TokenInvalid, TokenExpired):
        return
    assert user.token_expires > time.time()
