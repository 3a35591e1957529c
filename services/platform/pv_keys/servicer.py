"""PrivateKeyService: proto to rules and back."""

import asyncpg

from nexus.platform.pv_keys.v1 import pv_keys_pb2 as pb
from nexus.platform.pv_keys.v1.faults import (
    KeyKindUnsuitable,
    PrivateKeyExists,
    PrivateKeyLocked,
    PrivateKeyNotFound,
    ProposalNotFound,
    SigningNotFound,
    SigningNotPending,
    SlotTaken,
)
from nexus.type.v1.faults import IdempotencyKeyReused
from services.chassis.clock import timestamp
from services.chassis.context import RequestContext
from services.chassis.fields import FieldCipher
from services.chassis.ids import new_id
from services.chassis.paging import Pager
from services.chassis.service import Service
from services.platform.pv_keys import curves, payloads, policy
from services.platform.pv_keys.curves import Curve
from services.platform.pv_keys.store import PrivateKeyStore, policy_of, proposal_of

_FIELD = "private key"


class PrivateKeyService:
    def __init__(self, service: Service) -> None:
        self._database = service.database
        self._store = PrivateKeyStore(service.database)
        self._fields = FieldCipher(service.clients)
        self._pager = Pager(service.sealer)

    async def GenerateKey(self, request: pb.GenerateKeyRequest, call: RequestContext) -> pb.GenerateKeyResponse:
        curve = _curve(request.curve)
        secret = curves.generate_seed() if request.hd_root else curves.generate(curve)
        row = await self._keep(call, "generated", request.label, curve, secret, request.policy, hd_root=request.hd_root)
        return pb.GenerateKeyResponse(key=_key(row))

    async def ImportKey(self, request: pb.ImportKeyRequest, call: RequestContext) -> pb.ImportKeyResponse:
        curve, hd_root = _curve(request.curve), request.HasField("mnemonic")
        if hd_root:
            secret = curves.seed_of(request.mnemonic, request.passphrase)
        else:
            secret = request.private_key
            curves.require_private(curve, secret)
        row = await self._keep(call, "imported", request.label, curve, secret, request.policy, hd_root=hd_root)
        return pb.ImportKeyResponse(key=_key(row))

    async def DeriveKey(self, request: pb.DeriveKeyRequest, call: RequestContext) -> pb.DeriveKeyResponse:
        root = await self._require(request.key_id)
        _require_unlocked(root)
        if not root["hd_root"]:
            raise KeyKindUnsuitable(key_id=request.key_id, why="it is not the root of a hierarchy")
        row = await self._store.derived(request.key_id, request.path)
        if row is None:
            curve, rules = Curve(root["curve"]), policy_of(root)
            if request.HasField("policy"):
                policy.require_replaceable(rules)
                rules = request.policy
            secret = curves.derive(curve, await self._secret(root), request.path)
            row = await self._keep(
                call, "derived", request.label, curve, secret, rules, root_id=request.key_id, path=request.path
            )
        return pb.DeriveKeyResponse(key=_key(row))

    async def GetPrivateKey(self, request: pb.GetPrivateKeyRequest, call: RequestContext) -> pb.GetPrivateKeyResponse:
        return pb.GetPrivateKeyResponse(key=_key(await self._require(request.key_id)))

    async def ListPrivateKeys(
        self, request: pb.ListPrivateKeysRequest, call: RequestContext
    ) -> pb.ListPrivateKeysResponse:
        size = self._pager.size(request)
        rows = await self._store.page(self._pager.cursor(request, call) or None, size + 1)
        more = self._pager.token(request, call, rows[size - 1]["key_id"]) if len(rows) > size else ""
        return pb.ListPrivateKeysResponse(keys=map(_key, rows[:size]), next_page_token=more)

    async def SetPolicy(self, request: pb.SetPolicyRequest, call: RequestContext) -> pb.SetPolicyResponse:
        policy.require_sound(request.policy)
        async with self._database.transaction():
            key = await self._store.locked(request.key_id)
            if key is None or policy.is_approved(policy_of(key), ()):
                row = await self._store.set_policy(request.key_id, request.policy)
                return pb.SetPolicyResponse(key=_key(await self._noted(row, request.key_id, "policy set", call)))
            # Else a manager could do without the approvers: relax the policy, sign, put it back.
            if proposal_of(key) != request.policy or key["proposer_id"] != call.user.user_id:
                row = await self._store.propose_policy(request.key_id, request.policy, call.user.user_id)
                key = await self._noted(row, request.key_id, "policy proposed", call)
        return pb.SetPolicyResponse(key=_key(key))

    async def ApprovePolicy(self, request: pb.ApprovePolicyRequest, call: RequestContext) -> pb.ApprovePolicyResponse:
        async with self._database.transaction():
            key = await self._store.locked(request.key_id)
            if key is None:
                raise PrivateKeyNotFound(key_id=request.key_id)
            proposal, rules = proposal_of(key), policy_of(key)
            if proposal is None or key["proposal_id"] != request.proposal_id:
                raise ProposalNotFound(proposal_id=request.proposal_id)
            policy.check_approver(rules, key["proposer_id"], call.user.user_id)
            row = await self._store.approve_policy(request.key_id, call.user.user_id)
            key = await self._noted(row, request.key_id, "policy approved", call)
            if policy.is_approved(rules, key["proposal_approved_by"]):
                row = await self._store.set_policy(request.key_id, proposal)
                key = await self._noted(row, request.key_id, "policy set", call)
        return pb.ApprovePolicyResponse(key=_key(key))

    async def LockKey(self, request: pb.LockKeyRequest, call: RequestContext) -> pb.LockKeyResponse:
        async with self._database.transaction():
            row = await self._store.set_locked(request.key_id, locked=True)
            return pb.LockKeyResponse(key=_key(await self._noted(row, request.key_id, "locked", call)))

    async def UnlockKey(self, request: pb.UnlockKeyRequest, call: RequestContext) -> pb.UnlockKeyResponse:
        async with self._database.transaction():
            row = await self._store.set_locked(request.key_id, locked=False)
            return pb.UnlockKeyResponse(key=_key(await self._noted(row, request.key_id, "unlocked", call)))

    async def Sign(self, request: pb.SignRequest, call: RequestContext) -> pb.SignResponse:
        payload = payloads.read(request)
        # Key-service is asked before the key's row is locked: nobody waits for it but this call.
        secret = await self._secret(await self._require(request.key_id))
        async with self._database.transaction():
            key = await self._locked(request.key_id)
            earlier = await self._earlier(request, payload, call)
            if earlier is not None:
                return pb.SignResponse(signing=_signing(earlier))
            if payload.kind == "ethereum_transaction" and key["curve"] != Curve.SECP256K1:
                raise KeyKindUnsuitable(key_id=request.key_id, why="Ethereum signs on secp256k1")
            rules = policy_of(key)
            policy.check(rules, payload)
            signing = await self._store.insert_signing(
                request.key_id, payload, request.SerializeToString(), call.user.user_id, request.request_id
            )
            if policy.is_approved(rules, ()):
                signing = await self._sign(key, signing, secret, call)
            else:
                await self._note(key, "requested", call, signing)
        return pb.SignResponse(signing=_signing(signing))

    async def ApproveSigning(
        self, request: pb.ApproveSigningRequest, call: RequestContext
    ) -> pb.ApproveSigningResponse:
        found = await self._require_signing(request.signing_id)
        secret = await self._secret(await self._require(found["key_id"]))
        async with self._database.transaction():
            key = await self._locked(found["key_id"])
            signing = await self._require_signing(request.signing_id)
            if signing["state"] == "SIGNED" and call.user.user_id in signing["approved_by"]:
                return pb.ApproveSigningResponse(signing=_signing(signing))
            _require_pending(signing)
            rules = policy_of(key)
            policy.check_approver(rules, signing["requester_id"], call.user.user_id)
            await self._store.approve(request.signing_id, call.user.user_id)
            await self._note(key, "approved", call, signing)
            signing = await self._require_signing(request.signing_id)
            if policy.is_approved(rules, signing["approved_by"]):
                policy.check(rules, payloads.read(pb.SignRequest.FromString(signing["request"])))
                signing = await self._sign(key, signing, secret, call)
        return pb.ApproveSigningResponse(signing=_signing(signing))

    async def RejectSigning(self, request: pb.RejectSigningRequest, call: RequestContext) -> pb.RejectSigningResponse:
        found = await self._require_signing(request.signing_id)
        async with self._database.transaction():
            key = await self._store.locked(found["key_id"])
            assert key is not None, "a signing has a key"
            signing = await self._require_signing(request.signing_id)
            if signing["requester_id"] != call.user.user_id:
                policy.check_approver(policy_of(key), signing["requester_id"], call.user.user_id)
            if signing["state"] != "REJECTED":
                _require_pending(signing)
                signing = await self._store.set_rejected(request.signing_id)
                await self._note(key, "rejected", call, signing)
        return pb.RejectSigningResponse(signing=_signing(signing))

    async def GetSigning(self, request: pb.GetSigningRequest, call: RequestContext) -> pb.GetSigningResponse:
        return pb.GetSigningResponse(signing=_signing(await self._require_signing(request.signing_id)))

    async def ListSignings(self, request: pb.ListSigningsRequest, call: RequestContext) -> pb.ListSigningsResponse:
        await self._require(request.key_id)
        size = self._pager.size(request)
        rows = await self._store.signings(request.key_id, self._pager.cursor(request, call) or None, size + 1)
        more = self._pager.token(request, call, rows[size - 1]["signing_id"]) if len(rows) > size else ""
        return pb.ListSigningsResponse(signings=map(_signing, rows[:size]), next_page_token=more)

    async def ListKeyEvents(self, request: pb.ListKeyEventsRequest, call: RequestContext) -> pb.ListKeyEventsResponse:
        await self._require(request.key_id)
        size = self._pager.size(request)
        rows = await self._store.events(request.key_id, self._pager.cursor(request, call) or None, size + 1)
        more = self._pager.token(request, call, rows[size - 1]["event_id"]) if len(rows) > size else ""
        return pb.ListKeyEventsResponse(events=map(_event, rows[:size]), next_page_token=more)

    async def _keep(
        self,
        call: RequestContext,
        action: str,
        label: str,
        curve: Curve,
        secret: bytes,
        rules: pb.SigningPolicy,
        *,
        hd_root: bool = False,
        root_id: str | None = None,
        path: str = "",
    ) -> asyncpg.Record:
        """Seal and store a new key; the one that another call has derived meanwhile, if it has.

        Raises PrivateKeyExists.
        """
        policy.require_sound(rules)
        key_id = new_id()
        sealed = await self._fields.seal(secret, subject=_subject(key_id), field=_FIELD)
        public = curves.public_of_seed(curve, secret) if hd_root else curves.public_of(curve, secret)
        account = "" if hd_root else curves.ethereum_account(curve, secret)
        async with self._database.transaction():
            row = await self._store.insert(
                key_id,
                label,
                curve,
                sealed,
                public,
                account,
                rules,
                hd_root=hd_root,
                root_key_id=root_id,
                path=path,
            )
            if row is not None:
                await self._note(row, action, call)
                return row
            if root_id is not None and (derived := await self._store.derived(root_id, path)) is not None:
                return derived
            same = await self._store.same(curve, public, hd_root=hd_root)
            assert same is not None, "nothing else keeps a key out, and none is ever deleted"
            raise PrivateKeyExists(key_id=same["key_id"])

    async def _secret(self, key: asyncpg.Record) -> bytes:
        return await self._fields.open(key["secret_sealed"], subject=_subject(key["key_id"]), field=_FIELD)

    async def _sign(
        self, key: asyncpg.Record, signing: asyncpg.Record, secret: bytes, call: RequestContext
    ) -> asyncpg.Record:
        """Within the limits, in the transaction that holds the key."""
        request = pb.SignRequest.FromString(signing["request"])
        payload = payloads.read(request)
        for limit in policy_of(key).limits:
            used = await self._store.usage(key["key_id"], limit.period.ToTimedelta(), limit.asset)
            policy.check_limit(limit, payload, used)
        signature = payloads.sign(request, Curve(key["curve"]), secret)
        await self._note(key, "signed", call, signing)
        return await self._store.set_signed(signing["signing_id"], signature)

    async def _earlier(
        self, request: pb.SignRequest, payload: payloads.Payload, call: RequestContext
    ) -> asyncpg.Record | None:
        """The signing that this request, or its slot, already has. Raises IdempotencyKeyReused, SlotTaken."""
        earlier = await self._store.requested(request.key_id, call.user.user_id, request.request_id)
        if earlier is not None:
            if (earlier["payload"], earlier["slot"]) != (payload.bytes_to_sign, payload.slot):
                raise IdempotencyKeyReused(key=request.request_id)
            return earlier
        earlier = await self._store.in_slot(request.key_id, payload.slot) if payload.slot else None
        if earlier is not None and earlier["payload"] != payload.bytes_to_sign:
            raise SlotTaken(slot=payload.slot, signing_id=earlier["signing_id"])
        return earlier

    async def _require(self, key_id: str) -> asyncpg.Record:
        key = await self._store.by_id(key_id)
        if key is None:
            raise PrivateKeyNotFound(key_id=key_id)
        return key

    async def _locked(self, key_id: str) -> asyncpg.Record:
        """The key, held until the transaction ends, if it may sign."""
        key = await self._store.locked(key_id)
        if key is None:
            raise PrivateKeyNotFound(key_id=key_id)
        _require_unlocked(key)
        if key["hd_root"]:
            raise KeyKindUnsuitable(key_id=key_id, why="the root of a hierarchy derives keys and does not sign")
        return key

    async def _require_signing(self, signing_id: str) -> asyncpg.Record:
        signing = await self._store.signing(signing_id)
        if signing is None:
            raise SigningNotFound(signing_id=signing_id)
        return signing

    async def _noted(
        self, row: asyncpg.Record | None, key_id: str, action: str, call: RequestContext
    ) -> asyncpg.Record:
        if row is None:
            raise PrivateKeyNotFound(key_id=key_id)
        await self._note(row, action, call)
        return row

    async def _note(
        self, key: asyncpg.Record, action: str, call: RequestContext, signing: asyncpg.Record | None = None
    ) -> None:
        signing_id = signing["signing_id"] if signing is not None else None
        await self._store.note(key["key_id"], action, call.user.user_id, call.request_id, signing_id)


def _require_unlocked(key: asyncpg.Record) -> None:
    if key["locked"]:
        raise PrivateKeyLocked(key_id=key["key_id"])


def _require_pending(signing: asyncpg.Record) -> None:
    if signing["state"] != "PENDING":
        raise SigningNotPending(signing_id=signing["signing_id"], state=signing["state"].lower())


def _subject(key_id: str) -> str:
    """What the key's data key is about: it is this key's alone."""
    return f"private-key {key_id}"


def _curve(value: int) -> Curve:
    return Curve(pb.Curve.Name(value).removeprefix("CURVE_"))  # type: ignore[arg-type]


def _proposal(row: asyncpg.Record) -> pb.PolicyProposal | None:
    if row["proposal"] is None:
        return None
    return pb.PolicyProposal(
        proposal_id=row["proposal_id"],
        policy=proposal_of(row),
        proposer_id=row["proposer_id"],
        approved_by=row["proposal_approved_by"],
    )


def _key(row: asyncpg.Record) -> pb.PrivateKey:
    return pb.PrivateKey(
        key_id=row["key_id"],
        label=row["label"],
        curve=pb.Curve.Value(f"CURVE_{row['curve']}"),
        hd_root=row["hd_root"],
        public_key=row["public_key"],
        ethereum_account=row["ethereum_account"],
        root_key_id=row["root_key_id"] or "",
        path=row["path"],
        locked=row["locked"],
        policy=policy_of(row),
        create_time=timestamp(row["create_time"]),
        proposal=_proposal(row),
    )


def _signing(row: asyncpg.Record) -> pb.Signing:
    return pb.Signing(
        signing_id=row["signing_id"],
        key_id=row["key_id"],
        state=pb.SigningState.Value(f"SIGNING_STATE_{row['state']}"),
        payload=row["payload"],
        signature=row["signature"],
        slot=row["slot"],
        destination=row["destination"],
        asset=row["asset"],
        amount=row["amount"],
        requester_id=row["requester_id"],
        approved_by=row["approved_by"],
        create_time=timestamp(row["create_time"]),
        sign_time=timestamp(row["sign_time"]) if row["sign_time"] else None,
    )


def _event(row: asyncpg.Record) -> pb.KeyEvent:
    return pb.KeyEvent(
        event_id=row["event_id"],
        action=row["action"],
        user_id=row["user_id"],
        request_id=row["request_id"],
        signing_id=row["signing_id"] or "",
        event_time=timestamp(row["create_time"]),
    )
