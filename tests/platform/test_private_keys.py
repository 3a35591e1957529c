"""Private keys sign what their policy allows and nothing else, however many ask at once, and never leave."""

import asyncio
import base64
import hashlib
from collections import Counter
from typing import Any

import httpx
import pytest
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric import ec, ed25519
from cryptography.hazmat.primitives.asymmetric.utils import encode_dss_signature
from cryptography.hazmat.primitives.hashes import SHA256
from eth_account import Account

from services.chassis.ids import new_id
from services.platform.pv_keys.curves import Curve, derive, seed_of
from tests.platforms import Platform, SignedIn, Tenant

CURVES = ["ED25519", "P256", "SECP256K1"]
MESSAGE = b"pay the bearer"
MNEMONIC = "abandon " * 11 + "about"  # BIP-39's own test vector
RECIPIENT = "0x52908400098527886E0F7030069857D2E4169EE7"  # EIP-55's


def b64(data: bytes) -> str:
    return base64.b64encode(data).decode()


def reason(answer: httpx.Response) -> Any:
    assert answer.status_code != 200, answer.text
    return answer.json()["details"][0]["reason"]


class PrivateKeys:
    """The API, as one user."""

    def __init__(self, http: httpx.AsyncClient, user: SignedIn) -> None:
        self._http, self.user = http, user

    async def post(self, path: str, /, **body: Any) -> httpx.Response:
        return await self._http.post(f"/api/v1{path}", headers=self.user.headers, json=body)

    async def get(self, path: str, **query: Any) -> httpx.Response:
        return await self._http.get(f"/api/v1{path}", headers=self.user.headers, params=query)

    async def generate(self, curve: str = "ED25519", **body: Any) -> dict[str, Any]:
        answer = await self.post("/private-keys", curve=f"CURVE_{curve}", **body)
        assert answer.status_code == 200, answer.text
        key: dict[str, Any] = answer.json()["key"]
        return key

    async def sign(self, key: dict[str, Any], *, request_id: str = "", **payload: Any) -> httpx.Response:
        payload = payload or {"message": b64(MESSAGE)}
        return await self.post(f"/private-keys/{key['keyId']}/signings", requestId=request_id or new_id(), **payload)


@pytest.fixture
async def keys(tenant: Tenant, http: httpx.AsyncClient) -> PrivateKeys:
    return PrivateKeys(http, await tenant.sign_in("owner"))


def verify(curve: str, public_key: str, message: bytes, signature: str) -> None:
    """Raises InvalidSignature."""
    public, signed = base64.b64decode(public_key), base64.b64decode(signature)
    if curve == "ED25519":
        ed25519.Ed25519PublicKey.from_public_bytes(public).verify(signed, message)
        return
    group = ec.SECP256R1() if curve == "P256" else ec.SECP256K1()
    r, s = int.from_bytes(signed[:32], "big"), int.from_bytes(signed[32:], "big")
    point = ec.EllipticCurvePublicKey.from_encoded_point(group, public)
    point.verify(encode_dss_signature(r, s), message, ec.ECDSA(SHA256()))


def transfer(amount: int, destination: str = "bob", **more: Any) -> dict[str, Any]:
    return {"transfer": {"destination": destination, "asset": "EUR", "amount": str(amount)}, **more}


def transaction(nonce: int = 0, **change: Any) -> dict[str, Any]:
    return {
        "ethereumTransaction": {
            "chainId": "1",
            "nonce": str(nonce),
            "to": RECIPIENT,
            "value": "1000",
            "gas": "21000",
            "maxFeePerGas": "2",
            "maxPriorityFeePerGas": "1",
            **change,
        }
    }


@pytest.mark.parametrize("curve", CURVES)
async def test_a_signature_verifies_with_the_public_key(keys: PrivateKeys, curve: str) -> None:
    key = await keys.generate(curve)
    signing = (await keys.sign(key)).json()["signing"]
    assert signing["state"] == "SIGNING_STATE_SIGNED"
    verify(curve, key["publicKey"], MESSAGE, signing["signature"])
    with pytest.raises(InvalidSignature):
        verify(curve, key["publicKey"], MESSAGE + b".", signing["signature"])


async def test_fifty_at_once_sign_exactly_as_often_as_the_limit_says(keys: PrivateKeys) -> None:
    key = await keys.generate(policy={"limits": [{"period": "3600s", "signatures": 10}]})
    answers = await asyncio.gather(*(keys.sign(key, message=b64(bytes([n]))) for n in range(50)))
    outcomes = Counter("signed" if answer.status_code == 200 else reason(answer) for answer in answers)
    signed = (await keys.get(f"/private-keys/{key['keyId']}/signings")).json()["signings"]
    assert outcomes["signed"] == len(signed) == 10
    assert set(outcomes) <= {"signed", "LIMIT_EXCEEDED", "CONFLICT"}
    assert reason(await keys.sign(key)) == "LIMIT_EXCEEDED"


async def test_transfers_at_once_never_send_more_than_the_limit(keys: PrivateKeys) -> None:
    key = await keys.generate(policy={"limits": [{"period": "3600s", "asset": "EUR", "amount": "1000"}]})
    await asyncio.gather(*(keys.sign(key, **transfer(150)) for _ in range(20)))
    signed = (await keys.get(f"/private-keys/{key['keyId']}/signings")).json()["signings"]
    assert sum(int(signing["amount"]) for signing in signed) == 900
    assert reason(await keys.sign(key, **transfer(101))) == "LIMIT_EXCEEDED"
    assert (await keys.sign(key, **transfer(100))).status_code == 200


async def test_a_slot_is_signed_for_one_payload_however_many_want_it(keys: PrivateKeys) -> None:
    key = await keys.generate()
    rivals = await asyncio.gather(*(keys.sign(key, **transfer(n + 1, slot="7")) for n in range(20)))
    (winner,) = [answer.json()["signing"] for answer in rivals if answer.status_code == 200]
    assert {reason(answer) for answer in rivals if answer.status_code != 200} <= {"SLOT_TAKEN", "CONFLICT"}
    again = await keys.sign(key, **transfer(int(winner["amount"]), slot="7"))
    assert again.json()["signing"] == winner
    assert (await keys.sign(key, **transfer(1, slot="8"))).status_code == 200


async def test_a_repeated_request_signs_once(keys: PrivateKeys) -> None:
    key = await keys.generate()
    answers = await asyncio.gather(*(keys.sign(key, request_id="once") for _ in range(10)))
    assert len({answer.json()["signing"]["signingId"] for answer in answers}) == 1
    assert reason(await keys.sign(key, request_id="once", message=b64(b"other"))) == "IDEMPOTENCY_KEY_REUSED"


async def test_an_ethereum_transaction_is_signed_as_ethereum_asks_and_once_a_nonce(keys: PrivateKeys) -> None:
    key = await keys.generate("SECP256K1")
    signing = (await keys.sign(key, **transaction())).json()["signing"]
    raw = base64.b64decode(signing["signature"])
    assert Account.recover_transaction(raw) == key["ethereumAccount"]
    assert (signing["slot"], signing["asset"], signing["amount"]) == ("evm:1:0", "evm:1", str(1000 + 21000 * 2))
    assert reason(await keys.sign(key, **transaction(value="2000"))) == "SLOT_TAKEN"
    assert (await keys.sign(key, **transaction(nonce=1))).status_code == 200
    assert reason(await keys.sign(key, **transaction(nonce=2, to=RECIPIENT.replace("E", "e")))) == "INVALID_REQUEST"
    assert reason(await keys.sign(await keys.generate(), **transaction())) == "KEY_KIND_UNSUITABLE"


async def test_a_policy_with_destinations_lets_nothing_else_through(keys: PrivateKeys) -> None:
    key = await keys.generate("SECP256K1", policy={"destinations": ["bob", RECIPIENT.lower()]})
    assert (await keys.sign(key, **transfer(1))).status_code == 200
    assert (await keys.sign(key, **transaction())).status_code == 200
    for payload in (
        transfer(1, "eve"),
        transaction(1, to="0x" + "00" * 20),
        transaction(1, data=b64(b"transfer(eve)")),
        {"message": b64(MESSAGE)},
    ):
        assert reason(await keys.sign(key, **payload)) == "POLICY_FORBIDS"


async def test_a_policy_that_cannot_be_kept_is_refused(keys: PrivateKeys) -> None:
    for policy in (
        {"approvals": 2, "approverIds": [new_id()]},
        {"limits": [{"period": "60s", "asset": "EUR"}]},
        {"limits": [{"period": "60s"}]},
    ):
        assert reason(await keys.post("/private-keys", curve="CURVE_P256", policy=policy)) == "POLICY_INVALID"


async def test_two_of_three_distinct_approvers_sign_and_the_requester_is_none_of_them(
    keys: PrivateKeys, tenant: Tenant, http: httpx.AsyncClient
) -> None:
    ann, bob, eve = [PrivateKeys(http, await tenant.sign_in("owner")) for _ in range(3)]
    approvers = [keys.user.user_id, ann.user.user_id, bob.user.user_id]
    key = await keys.generate(policy={"approvals": 2, "approverIds": approvers})
    asked = (await keys.sign(key)).json()["signing"]
    assert (asked["state"], asked["signature"]) == ("SIGNING_STATE_PENDING", "")
    approve = f"/signings/{asked['signingId']}:approve"

    assert reason(await keys.post(approve)) == "APPROVER_NOT_ALLOWED"
    assert reason(await eve.post(approve)) == "APPROVER_NOT_ALLOWED"
    twice = await asyncio.gather(*(ann.post(approve) for _ in range(5)))
    assert {answer.json()["signing"]["state"] for answer in twice} == {"SIGNING_STATE_PENDING"}
    signed = (await bob.post(approve)).json()["signing"]

    assert signed["state"] == "SIGNING_STATE_SIGNED"
    assert set(signed["approvedBy"]) == {ann.user.user_id, bob.user.user_id}
    verify("ED25519", key["publicKey"], MESSAGE, signed["signature"])
    assert (await bob.post(approve)).json()["signing"] == signed
    assert reason(await ann.post(f"/signings/{asked['signingId']}:reject")) == "SIGNING_NOT_PENDING"


async def test_a_policy_with_approvals_gives_way_only_to_what_its_approvers_agree_to(
    keys: PrivateKeys, tenant: Tenant, http: httpx.AsyncClient
) -> None:
    ann, bob, eve = [PrivateKeys(http, await tenant.sign_in("owner")) for _ in range(3)]
    strict = {"approvals": 2, "approverIds": [keys.user.user_id, ann.user.user_id, bob.user.user_id]}
    key = await keys.generate(policy=strict)
    path = f"/private-keys/{key['keyId']}/policy"

    async def propose(policy: dict[str, Any], by: PrivateKeys = keys) -> dict[str, Any]:
        answer = await http.put(f"/api/v1{path}", headers=by.user.headers, json={"policy": policy})
        assert answer.status_code == 200, answer.text
        found: dict[str, Any] = answer.json()["key"]
        assert found["policy"] == key["policy"], "what is proposed is not in force"
        proposal: dict[str, Any] = found["proposal"]
        return proposal

    async def approve(by: PrivateKeys, proposal: dict[str, Any]) -> httpx.Response:
        return await by.post(f"{path}:approve", proposalId=proposal["proposalId"])

    first = await propose({})
    assert await propose({}) == first
    assert (await keys.sign(key)).json()["signing"]["state"] == "SIGNING_STATE_PENDING"
    assert reason(await approve(keys, first)) == "APPROVER_NOT_ALLOWED"
    assert reason(await approve(eve, first)) == "APPROVER_NOT_ALLOWED"
    twice = await asyncio.gather(*(approve(ann, first) for _ in range(5)))
    assert all(answer.json()["key"]["proposal"]["approvedBy"] == [ann.user.user_id] for answer in twice)

    # Another proposal begins anew: nobody has agreed to this one.
    second = await propose({"allowMessages": True}, by=eve)
    assert reason(await approve(bob, first)) == "PROPOSAL_NOT_FOUND"
    assert (await approve(bob, second)).json()["key"]["policy"] == key["policy"]
    agreed = (await approve(keys, second)).json()["key"]
    assert (agreed["policy"]["approvals"], agreed["policy"]["allowMessages"]) == (0, True)
    assert "proposal" not in agreed
    assert (await keys.sign(key)).json()["signing"]["state"] == "SIGNING_STATE_SIGNED"
    assert reason(await approve(ann, second)) == "PROPOSAL_NOT_FOUND"


async def test_limits_are_checked_when_it_signs_not_when_it_is_asked_for(
    keys: PrivateKeys, tenant: Tenant, http: httpx.AsyncClient
) -> None:
    ann = PrivateKeys(http, await tenant.sign_in("owner"))
    key = await keys.generate(policy={"approvals": 1, "limits": [{"period": "3600s", "signatures": 3}]})
    asked = [(await keys.sign(key, message=b64(bytes([n])))).json()["signing"] for n in range(8)]
    answers = await asyncio.gather(*(ann.post(f"/signings/{signing['signingId']}:approve") for signing in asked))
    outcomes = Counter(answer.status_code == 200 or reason(answer) for answer in answers)
    assert outcomes[True] == 3
    assert set(outcomes) <= {True, "LIMIT_EXCEEDED", "CONFLICT"}


async def test_a_rejected_signing_frees_its_slot_and_is_never_signed(
    keys: PrivateKeys, tenant: Tenant, http: httpx.AsyncClient
) -> None:
    ann = PrivateKeys(http, await tenant.sign_in("owner"))
    key = await keys.generate(policy={"approvals": 1})
    asked = (await keys.sign(key, **transfer(1, slot="1"))).json()["signing"]
    assert reason(await keys.sign(key, **transfer(2, slot="1"))) == "SLOT_TAKEN"
    await ann.post(f"/signings/{asked['signingId']}:reject")
    assert reason(await ann.post(f"/signings/{asked['signingId']}:approve")) == "SIGNING_NOT_PENDING"
    assert (await keys.sign(key, **transfer(2, slot="1"))).status_code == 200


async def test_a_locked_key_signs_nothing_not_even_what_was_approved(
    keys: PrivateKeys, tenant: Tenant, http: httpx.AsyncClient
) -> None:
    ann = PrivateKeys(http, await tenant.sign_in("owner"))
    key = await keys.generate(policy={"approvals": 1})
    asked = (await keys.sign(key)).json()["signing"]
    await keys.post(f"/private-keys/{key['keyId']}:lock")
    assert reason(await keys.sign(key)) == "PRIVATE_KEY_LOCKED"
    assert reason(await ann.post(f"/signings/{asked['signingId']}:approve")) == "PRIVATE_KEY_LOCKED"
    await keys.post(f"/private-keys/{key['keyId']}:unlock")
    assert (await ann.post(f"/signings/{asked['signingId']}:approve")).status_code == 200


async def test_a_known_mnemonic_derives_the_known_accounts(keys: PrivateKeys) -> None:
    answer = await keys.post("/private-keys:import", curve="CURVE_SECP256K1", mnemonic=MNEMONIC)
    root = answer.json()["key"]
    derived = [
        (await keys.post(f"/private-keys/{root['keyId']}:derive", path=f"m/44'/60'/0'/0/{n}")).json()["key"]
        for n in (0, 0)
    ]
    assert derived[0] == derived[1], "the same path is the same key"
    assert derived[0]["ethereumAccount"] == "0x9858EfFD232B4033E47d90003D41EC34EcaEda94"
    assert derived[0]["rootKeyId"] == root["keyId"]
    assert reason(await keys.sign(root)) == "KEY_KIND_UNSUITABLE"
    assert (await keys.sign(derived[0], **transaction())).status_code == 200
    wrong = await keys.post("/private-keys:import", curve="CURVE_SECP256K1", mnemonic="abandon " * 12)
    assert reason(wrong) == "PRIVATE_KEY_INVALID"


@pytest.mark.parametrize("path", ["m/00'", "m/01", "m/0'/00", "m/000000000'", "m", "m/", "m/0''", "M/0'", "m/0h"])
async def test_a_path_has_one_spelling(keys: PrivateKeys, path: str) -> None:
    root = await keys.generate("SECP256K1", hdRoot=True)
    assert reason(await keys.post(f"/private-keys/{root['keyId']}:derive", path=path)) == "INVALID_REQUEST"


async def test_a_private_key_is_here_once_however_it_comes(keys: PrivateKeys) -> None:
    """Else it had a second policy, and second slots, beside the first."""
    root = (await keys.post("/private-keys:import", curve="CURVE_P256", mnemonic=MNEMONIC)).json()["key"]
    again = await keys.post("/private-keys:import", curve="CURVE_P256", mnemonic=f"  {MNEMONIC} ")
    assert reason(again) == "PRIVATE_KEY_EXISTS"
    assert again.json()["details"][0]["metadata"]["key_id"] == root["keyId"]

    private = derive(Curve.P256, seed_of(MNEMONIC, ""), "m/0'/1")
    imports = [keys.post("/private-keys:import", curve="CURVE_P256", privateKey=b64(private)) for _ in range(5)]
    answers = [answer for answer in await asyncio.gather(*imports) if answer.status_code != 200]
    assert [reason(answer) for answer in answers] == ["PRIVATE_KEY_EXISTS"] * 4
    assert reason(await keys.post(f"/private-keys/{root['keyId']}:derive", path="m/0'/1")) == "PRIVATE_KEY_EXISTS"


async def test_keys_derived_at_once_at_one_path_are_one(keys: PrivateKeys) -> None:
    root = await keys.generate("ED25519", hdRoot=True)
    answers = await asyncio.gather(*(keys.post(f"/private-keys/{root['keyId']}:derive", path="m/7'") for _ in range(8)))
    assert len({answer.json()["key"]["keyId"] for answer in answers}) == 1


async def test_what_is_derived_begins_with_the_roots_policy(keys: PrivateKeys) -> None:
    limited = {"limits": [{"period": "3600s", "signatures": 1}]}
    for policy, other in (({"approvals": 1}, False), (limited, True)):
        root = await keys.generate("ED25519", hdRoot=True, policy=policy)
        derive = f"/private-keys/{root['keyId']}:derive"
        assert (await keys.post(derive, path="m/0'")).json()["key"]["policy"] == root["policy"]
        own = await keys.post(derive, path="m/1'", policy={"allowMessages": True})
        assert (own.status_code == 200) is other, own.text
        if not other:
            assert reason(own) == "POLICY_FORBIDS"


async def test_ed25519_derives_hardened_steps_and_says_no_to_others(keys: PrivateKeys) -> None:
    root = await keys.generate("ED25519", hdRoot=True)
    derive = f"/private-keys/{root['keyId']}:derive"
    assert (await keys.post(derive, path="m/44'/501'/0'")).status_code == 200
    assert reason(await keys.post(derive, path="m/44'/501'/0")) == "DERIVATION_INVALID"
    assert reason(await keys.post(derive, path="m/2147483648'")) == "DERIVATION_INVALID"
    leaf = await keys.generate()
    assert reason(await keys.post(f"/private-keys/{leaf['keyId']}:derive", path="m/0'")) == "KEY_KIND_UNSUITABLE"


@pytest.mark.parametrize("curve", CURVES)
async def test_a_private_key_that_was_imported_is_found_nowhere_in_clear(
    platform: Platform, tenant: Tenant, keys: PrivateKeys, curve: str
) -> None:
    private = hashlib.sha256(new_id().encode()).digest()
    answer = await keys.post("/private-keys:import", curve=f"CURVE_{curve}", privateKey=b64(private), requestId="i")
    key = answer.json()["key"]
    assert (await keys.sign(key)).status_code == 200
    admin = await platform.admin()
    try:
        for schema in ("pv_keys", "key_service"):
            for (table,) in await admin.fetch("SELECT tablename FROM pg_tables WHERE schemaname = $1", schema):
                for (text,) in await admin.fetch(f"SELECT t::text FROM {schema}.{table} t"):
                    assert private.hex() not in text
    finally:
        await admin.close()
    for log in (platform.home / "logs").glob("*.log"):
        content = log.read_text()
        assert private.hex() not in content
        assert b64(private) not in content
    if curve != "ED25519":
        zero = await keys.post("/private-keys:import", curve=f"CURVE_{curve}", privateKey=b64(bytes(32)))
        high = await keys.post("/private-keys:import", curve=f"CURVE_{curve}", privateKey=b64(b"\xff" * 32))
        assert {reason(zero), reason(high)} == {"PRIVATE_KEY_INVALID"}


async def test_a_sealed_key_put_in_another_keys_row_does_not_sign(platform: Platform, keys: PrivateKeys) -> None:
    rich, poor = await keys.generate(), await keys.generate()
    admin = await platform.admin()
    try:
        await admin.execute(
            "UPDATE pv_keys.private_keys SET secret_sealed = "
            "(SELECT secret_sealed FROM pv_keys.private_keys WHERE key_id = $1) WHERE key_id = $2",
            rich["keyId"],
            poor["keyId"],
        )
    finally:
        await admin.close()
    assert reason(await keys.sign(poor)) == "INTERNAL"


async def test_another_tenant_finds_nothing(keys: PrivateKeys, other_tenant: Tenant, http: httpx.AsyncClient) -> None:
    key = await keys.generate()
    signing = (await keys.sign(key)).json()["signing"]
    stranger = PrivateKeys(http, await other_tenant.sign_in("owner"))
    assert reason(await stranger.get(f"/private-keys/{key['keyId']}")) == "PRIVATE_KEY_NOT_FOUND"
    assert reason(await stranger.sign(key)) == "PRIVATE_KEY_NOT_FOUND"
    assert reason(await stranger.get(f"/signings/{signing['signingId']}")) == "SIGNING_NOT_FOUND"
    assert reason(await stranger.post(f"/signings/{signing['signingId']}:approve")) == "SIGNING_NOT_FOUND"


async def test_everything_done_with_a_key_is_on_record_and_stays_there(
    platform: Platform, keys: PrivateKeys, tenant: Tenant, http: httpx.AsyncClient
) -> None:
    ann = PrivateKeys(http, await tenant.sign_in("owner"))
    key = await keys.generate(policy={"approvals": 1})
    asked = (await keys.sign(key)).json()["signing"]
    await ann.post(f"/signings/{asked['signingId']}:approve")
    await keys.post(f"/private-keys/{key['keyId']}:lock")
    events = (await keys.get(f"/private-keys/{key['keyId']}/events")).json()["events"]
    assert [(event["action"], event["userId"]) for event in events] == [
        ("locked", keys.user.user_id),
        ("signed", ann.user.user_id),
        ("approved", ann.user.user_id),
        ("requested", keys.user.user_id),
        ("generated", keys.user.user_id),
    ]
    admin = await platform.admin()
    try:
        for role in ("nexus_pv_keys", "nexus_pv_keys_platform"):
            # The role for jobs over all tenants deletes, when a tenant is erased.
            erases = ("DELETE",) if role == "nexus_pv_keys" else ()
            for right in ("UPDATE", "TRUNCATE", *erases):
                assert not await admin.fetchval("SELECT has_table_privilege($1, 'pv_keys.key_events', $2)", role, right)
    finally:
        await admin.close()
