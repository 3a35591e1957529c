"""The keys of a tenant as its people use them: old ciphertexts open after a rotation, nothing opens that should not."""

import asyncio
import base64
from collections.abc import Callable
from typing import Any

import httpx
import pytest

from tests.platforms import Platform, SignedIn, Tenant

PLAINTEXT = b"the treasure is under the palm tree"


def b64(data: bytes) -> str:
    return base64.b64encode(data).decode()


def reason(answer: httpx.Response) -> Any:
    assert answer.status_code != 200, answer.text
    return answer.json()["details"][0]["reason"]


class Keys:
    """The API, as one user."""

    def __init__(self, http: httpx.AsyncClient, user: SignedIn) -> None:
        self._http, self._headers = http, user.headers

    async def post(self, path: str, **body: Any) -> httpx.Response:
        return await self._http.post(f"/api/v1/keys{path}", headers=self._headers, json=body)

    async def get(self, path: str, **query: Any) -> httpx.Response:
        return await self._http.get(f"/api/v1/keys{path}", headers=self._headers, params=query)

    async def create(self, algorithm: str = "AES_256_GCM", name: str = "documents") -> str:
        answer = await self.post("", name=name, algorithm=f"KEY_ALGORITHM_{algorithm}")
        assert answer.status_code == 200, answer.text
        key_id: str = answer.json()["key"]["keyId"]
        return key_id

    async def encrypt(self, key_id: str, plaintext: bytes = PLAINTEXT, **context: str) -> str:
        answer = await self.post(f"/{key_id}:encrypt", plaintext=b64(plaintext), context=context)
        assert answer.status_code == 200, answer.text
        ciphertext: str = answer.json()["ciphertext"]
        return ciphertext

    async def decrypt(self, ciphertext: str, **context: str) -> httpx.Response:
        return await self.post(":decrypt", ciphertext=ciphertext, context=context)

    async def opens(self, ciphertext: str, **context: str) -> bool:
        answer = await self.decrypt(ciphertext, **context)
        return answer.status_code == 200 and base64.b64decode(answer.json()["plaintext"]) == PLAINTEXT


@pytest.fixture
async def keys(tenant: Tenant, http: httpx.AsyncClient) -> Keys:
    return Keys(http, await tenant.sign_in("owner"))


async def test_old_ciphertexts_open_after_rotations(keys: Keys) -> None:
    key_id = await keys.create()
    ciphertexts = []
    for version in (1, 2, 3):
        ciphertexts.append(await keys.encrypt(key_id, of="version"))
        rotated = (await keys.post(f"/{key_id}:rotate")).json()["key"]
        assert rotated["primaryVersion"] == version + 1
    assert all([await keys.opens(ciphertext, of="version") for ciphertext in ciphertexts])


async def test_a_ciphertext_needs_its_context_and_every_bit(keys: Keys) -> None:
    ciphertext = await keys.encrypt(await keys.create(), invoice="17")
    changed = bytearray(base64.b64decode(ciphertext))
    changed[-1] ^= 1
    assert await keys.opens(ciphertext, invoice="17")
    assert reason(await keys.decrypt(ciphertext, invoice="18")) == "CIPHERTEXT_INVALID"
    assert reason(await keys.decrypt(ciphertext)) == "CIPHERTEXT_INVALID"
    assert reason(await keys.decrypt(b64(bytes(changed)), invoice="17")) == "CIPHERTEXT_INVALID"


async def test_another_tenant_finds_neither_the_key_nor_what_it_encrypted(
    keys: Keys, other_tenant: Tenant, http: httpx.AsyncClient
) -> None:
    key_id = await keys.create()
    ciphertext = await keys.encrypt(key_id)
    stranger = Keys(http, await other_tenant.sign_in("owner"))
    assert reason(await stranger.get(f"/{key_id}")) == "KEY_NOT_FOUND"
    assert reason(await stranger.post(f"/{key_id}:encrypt", plaintext="")) == "KEY_NOT_FOUND"
    assert reason(await stranger.post(f"/{key_id}:rotate")) == "KEY_NOT_FOUND"
    assert reason(await stranger.decrypt(ciphertext)) == "CIPHERTEXT_INVALID"
    assert (await stranger.get("")).json()["keys"] == []


async def test_a_row_moved_to_another_tenant_or_key_gives_nothing_away(
    platform: Platform, keys: Keys, other_tenant: Tenant, http: httpx.AsyncClient
) -> None:
    """Even whoever can write the tables cannot open one key's ciphertexts through another key."""
    mine, yours = await keys.create(name="mine"), await keys.create(name="yours")
    ciphertext = await keys.encrypt(mine)
    admin = await platform.admin()
    try:
        await admin.execute(
            "UPDATE key_service.key_versions SET wrapped = "
            "(SELECT wrapped FROM key_service.key_versions WHERE key_id = $1) WHERE key_id = $2",
            mine,
            yours,
        )
    finally:
        await admin.close()
    assert reason(await keys.post(f"/{yours}:encrypt", plaintext="")) == "INTERNAL"
    assert await keys.opens(ciphertext)


async def test_the_minimum_version_rises_only_after_everything_older_was_rewrapped(keys: Keys) -> None:
    key_id = await keys.create()
    first, second = await keys.encrypt(key_id, n="1"), await keys.encrypt(key_id, n="2")
    await keys.post(f"/{key_id}:rotate")

    refused = await keys.post(f"/{key_id}:set-minimum-version", minimumVersion=2)
    assert reason(refused) == "OLDER_CIPHERTEXTS_REMAIN"
    assert refused.json()["details"][0]["metadata"] == {"count": "2"}

    for _ in range(2):  # the same one twice counts once
        fresh = (await keys.post(":rewrap", ciphertext=first, context={"n": "1"})).json()
    assert reason(await keys.post(f"/{key_id}:set-minimum-version", minimumVersion=2)) == "OLDER_CIPHERTEXTS_REMAIN"
    await keys.post(":rewrap", ciphertext=second, context={"n": "2"})
    assert (await keys.post(f"/{key_id}:set-minimum-version", minimumVersion=2)).status_code == 200

    assert fresh["keyVersion"] == 2
    assert await keys.opens(fresh["ciphertext"], n="1")
    assert reason(await keys.decrypt(first, n="1")) == "VERSION_TOO_OLD"
    assert reason(await keys.post(f"/{key_id}:set-minimum-version", minimumVersion=3)) == "VERSION_NOT_FOUND"


async def test_older_ciphertexts_can_be_abandoned_and_taken_back(keys: Keys) -> None:
    key_id = await keys.create()
    lost = await keys.encrypt(key_id)
    await keys.post(f"/{key_id}:rotate")
    raised = await keys.post(f"/{key_id}:set-minimum-version", minimumVersion=2, abandonOlder=True)
    assert raised.json()["key"]["minimumVersion"] == 2
    assert reason(await keys.decrypt(lost)) == "VERSION_TOO_OLD"
    await keys.post(f"/{key_id}:set-minimum-version", minimumVersion=1)
    assert await keys.opens(lost)


async def test_no_ciphertext_is_lost_while_the_minimum_version_rises(keys: Keys) -> None:
    """Whatever was handed out before the minimum rose was counted; whatever comes after is of the new version."""
    key_id = await keys.create()

    async def raise_minimum() -> httpx.Response:
        await keys.post(f"/{key_id}:rotate")
        return await keys.post(f"/{key_id}:set-minimum-version", minimumVersion=2)

    *ciphertexts, raised = await asyncio.gather(*(keys.encrypt(key_id) for _ in range(30)), raise_minimum())
    assert isinstance(raised, httpx.Response)
    opened = await asyncio.gather(*(keys.opens(str(ciphertext)) for ciphertext in ciphertexts))
    assert all(opened), f"the minimum was {'raised' if raised.status_code == 200 else 'refused'}"


async def test_a_disabled_key_does_nothing_until_it_is_enabled(keys: Keys) -> None:
    key_id = await keys.create()
    ciphertext = await keys.encrypt(key_id)
    assert (await keys.post(f"/{key_id}:disable")).json()["key"]["state"] == "KEY_STATE_DISABLED"
    assert reason(await keys.decrypt(ciphertext)) == "KEY_NOT_USABLE"
    assert reason(await keys.post(f"/{key_id}:encrypt", plaintext="")) == "KEY_NOT_USABLE"
    assert reason(await keys.post(f"/{key_id}:generate-data-key")) == "KEY_NOT_USABLE"
    await keys.post(f"/{key_id}:enable")
    assert await keys.opens(ciphertext)


async def test_a_destruction_can_be_taken_back_until_it_happens_and_then_nothing_opens(
    platform: Platform, keys: Keys, eventually_async: Callable[..., Any]
) -> None:
    key_id = await keys.create()
    ciphertext = await keys.encrypt(key_id)
    assert reason(await keys.post(f"/{key_id}:cancel-destruction")) == "DESTRUCTION_NOT_SCHEDULED"
    assert reason(await keys.post(f"/{key_id}:schedule-destruction", delay="60s")) == "DELAY_TOO_SHORT"
    await keys.post(f"/{key_id}:schedule-destruction")
    assert reason(await keys.decrypt(ciphertext)) == "KEY_NOT_USABLE"
    await keys.post(f"/{key_id}:cancel-destruction")
    await keys.post(f"/{key_id}:enable")
    assert await keys.opens(ciphertext)

    await keys.post(f"/{key_id}:schedule-destruction", delay="604800s")
    admin = await platform.admin()
    try:
        await admin.execute("UPDATE key_service.keys SET destroy_time = now() WHERE key_id = $1", key_id)

        async def destroyed() -> bool:
            return bool((await keys.get(f"/{key_id}")).json()["key"]["state"] == "KEY_STATE_DESTROYED")

        await eventually_async(destroyed)
        assert await admin.fetch("SELECT wrapped FROM key_service.key_versions WHERE key_id = $1", key_id) == [(None,)]
    finally:
        await admin.close()
    assert reason(await keys.decrypt(ciphertext)) == "KEY_NOT_USABLE"
    for change in ("enable", "disable", "rotate", "schedule-destruction"):
        assert reason(await keys.post(f"/{key_id}:{change}")) == "KEY_NOT_USABLE"
    assert reason(await keys.post(f"/{key_id}:cancel-destruction")) == "DESTRUCTION_NOT_SCHEDULED"
    assert await keys.create() != key_id, "its name is free again"


async def test_a_due_key_rotates_by_itself(
    platform: Platform, keys: Keys, eventually_async: Callable[..., Any]
) -> None:
    created = await keys.post("", name="auto", algorithm="KEY_ALGORITHM_AES_256_GCM", rotationPeriod="86400s")
    key_id = created.json()["key"]["keyId"]
    ciphertext = await keys.encrypt(key_id)
    admin = await platform.admin()
    try:
        await admin.execute("UPDATE key_service.keys SET next_rotation_time = now() WHERE key_id = $1", key_id)
    finally:
        await admin.close()

    async def rotated() -> bool:
        return bool((await keys.get(f"/{key_id}")).json()["key"]["primaryVersion"] == 2)

    await eventually_async(rotated)
    assert await keys.opens(ciphertext)
    assert await keys.opens(await keys.encrypt(key_id))


@pytest.mark.parametrize("algorithm", ["ES256", "ED25519"])
async def test_signatures_verify_after_a_rotation(keys: Keys, algorithm: str) -> None:
    key_id = await keys.create(algorithm)
    message = b64(b"I owe you 100 EUR")
    signed = (await keys.post(f"/{key_id}:sign", message=message)).json()
    await keys.post(f"/{key_id}:rotate")

    async def valid(**change: Any) -> Any:
        body = {"message": message, "signature": signed["signature"], **change}
        return (await keys.post(f"/{key_id}:verify", **body)).json()["valid"]

    assert await valid()
    assert await valid(keyVersion=1)
    assert not await valid(keyVersion=2)
    assert not await valid(message=b64(b"I owe you 900 EUR"))
    published = (await keys.get(f"/{key_id}/public-keys")).json()["publicKeys"]
    assert [key["keyVersion"] for key in published] == [2, 1]
    await keys.post(f"/{key_id}:set-minimum-version", minimumVersion=2)
    assert not await valid()
    refused = await keys.post(f"/{key_id}:verify", message=message, signature=signed["signature"], keyVersion=1)
    assert reason(refused) == "VERSION_TOO_OLD"


async def test_an_hmac_verifies_its_message_only(keys: Keys) -> None:
    key_id = await keys.create("HMAC_SHA256")
    mac = (await keys.post(f"/{key_id}:compute-hmac", message=b64(b"1"))).json()["hmac"]
    await keys.post(f"/{key_id}:rotate")
    for message, valid in ((b"1", True), (b"2", False)):
        answer = await keys.post(f"/{key_id}:verify-hmac", message=b64(message), hmac=mac)
        assert answer.json()["valid"] is valid


async def test_a_key_does_only_what_its_algorithm_does(keys: Keys) -> None:
    body = {"plaintext": "", "message": "", "signature": "AA==", "hmac": "AA=="}
    fields = {
        "encrypt": ["plaintext"],
        "generate-data-key": [],
        "sign": ["message"],
        "verify": ["signature"],
        "compute-hmac": ["message"],
        "verify-hmac": ["hmac"],
    }
    able = {"AES_256_GCM": {"encrypt", "generate-data-key"}, "ES256": {"sign", "verify"}}
    able |= {"ED25519": able["ES256"], "HMAC_SHA256": {"compute-hmac", "verify-hmac"}}
    for algorithm, operations in able.items():
        key_id = await keys.create(algorithm, name=algorithm.lower())
        for operation, needed in fields.items():
            answer = await keys.post(f"/{key_id}:{operation}", **{name: body[name] for name in needed})
            if operation in operations:
                assert answer.status_code == 200, answer.text
            else:
                assert reason(answer) == "ALGORITHM_UNSUITABLE"


async def test_a_repeated_creation_makes_one_key_and_a_name_is_given_once(keys: Keys) -> None:
    body = {"name": "once", "algorithm": "KEY_ALGORITHM_AES_256_GCM", "requestId": "r1"}
    answers = await asyncio.gather(*(keys.post("", **body) for _ in range(5)))
    assert len({answer.json()["key"]["keyId"] for answer in answers}) == 1
    again = await keys.post("", **{**body, "requestId": "r2"})
    assert reason(again) == "KEY_NAME_TAKEN"


async def test_every_use_is_recorded_without_what_it_was_used_on(
    platform: Platform, tenant: Tenant, http: httpx.AsyncClient
) -> None:
    user = await tenant.sign_in("owner")
    keys = Keys(http, user)
    key_id = await keys.create()
    ciphertext = await keys.encrypt(key_id, invoice="17")
    await keys.opens(ciphertext, invoice="17")
    await keys.opens(ciphertext, invoice="18")

    uses = (await keys.get(f"/{key_id}/uses")).json()["uses"]
    assert [(use["operation"], use["succeeded"], use["context"]) for use in uses] == [
        ("Decrypt", False, {"invoice": "18"}),
        ("Decrypt", True, {"invoice": "17"}),
        ("Encrypt", True, {"invoice": "17"}),
    ]
    assert {(use["userId"], use["caller"]) for use in uses} == {(user.user_id, "")}
    page = (await keys.get(f"/{key_id}/uses", pageSize=2)).json()
    rest = (await keys.get(f"/{key_id}/uses", pageSize=2, pageToken=page["nextPageToken"])).json()
    assert page["uses"] + rest["uses"] == uses
    admin = await platform.admin()
    try:
        for table in ("keys", "key_versions", "ciphertexts", "key_uses", "idempotency_keys"):
            for row in await admin.fetch(
                f"SELECT t::text AS text FROM key_service.{table} t WHERE tenant_id = $1", tenant.tenant_id
            ):
                assert "treasure" not in row["text"]
                assert PLAINTEXT.hex() not in row["text"]
    finally:
        await admin.close()


async def test_keys_are_listed_in_pages_the_latest_first(keys: Keys) -> None:
    made = [await keys.create(name=f"k{n}") for n in range(3)]
    first = (await keys.get("", pageSize=2)).json()
    rest = (await keys.get("", pageSize=2, pageToken=first["nextPageToken"])).json()
    assert [key["keyId"] for key in first["keys"] + rest["keys"]] == made[::-1]
    assert rest["nextPageToken"] == ""


async def test_a_user_without_permissions_does_nothing(keys: Keys, tenant: Tenant, http: httpx.AsyncClient) -> None:
    key_id = await keys.create()
    nobody = Keys(http, await tenant.sign_in())
    for path in (f"/{key_id}:encrypt", f"/{key_id}:rotate", f"/{key_id}:disable"):
        assert reason(await nobody.post(path)) == "PERMISSION_MISSING"
    assert reason(await nobody.get("")) == "PERMISSION_MISSING"
