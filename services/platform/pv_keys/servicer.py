"""PrivateKeyService: proto to rules and back."""

from decimal import Decimal
from functools import partial
from typing import Any

from google.protobuf import json_format

from nexus.platform.pv_keys.v1 import pv_keys_pb2 as pb
from nexus.platform.pv_keys.v1.faults import (
    KeyKindUnsuitable,
    PrivateKeyExists,
    PrivateKeyLocked,
    ProposalNotFound,
    SigningNotPending,
    SlotTaken,
)
from nexus.type.v1.faults import IdempotencyKeyReused
from services.chassis.context import RequestContext
from services.chassis.fields import FieldCipher
from services.chassis.ids import new_id
from services.chassis.messages import MessageOf, text_of
from services.chassis.paging import Pager
from services.chassis.service import Service
from services.chassis.table import Row
from services.platform.pv_keys import curves, payloads, policy
from services.platform.pv_keys.curves import Curve
from services.platform.pv_keys.store import PrivateKeyStore

_FIELD = "private key"

_key_of = MessageOf(pb.PrivateKey)
_proposal_of = MessageOf(pb.PolicyProposal, policy="proposal", approved_by="proposal_approved_by")
_signing = MessageOf(pb.Signing)
_event = MessageOf(pb.KeyEvent, event_time="create_time")


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
        root = await self._store.keys.require(request.key_id)
        _require_unlocked(root)
        if not root["hd_root"]:
            raise KeyKindUnsuitable(key_id=request.key_id, why="it is not the root of a hierarchy")
        place: dict[str, Any] = {"root_key_id": request.key_id, "path": request.path}
        row = await self._store.keys.find(**place)
        if row is None:
            curve, rules = Curve(root["curve"]), _rules(root)
            if request.HasField("policy"):
                policy.require_replaceable(rules)
                rules = request.policy
            secret = curves.derive(curve, await self._secret(root), request.path)
            row = await self._keep(call, "derived", request.label, curve, secret, rules, **place)
        return pb.DeriveKeyResponse(key=_key(row))

    async def GetPrivateKey(self, request: pb.GetPrivateKeyRequest, call: RequestContext) -> pb.GetPrivateKeyResponse:
        return pb.GetPrivateKeyResponse(key=_key(await self._store.keys.require(request.key_id)))

    async def ListPrivateKeys(
        self, request: pb.ListPrivateKeysRequest, call: RequestContext
    ) -> pb.ListPrivateKeysResponse:
        rows, more = await self._pager.page(request, call, self._store.keys.page, by="key_id")
        return pb.ListPrivateKeysResponse(keys=map(_key, rows), next_page_token=more)

    async def SetPolicy(self, request: pb.SetPolicyRequest, call: RequestContext) -> pb.SetPolicyResponse:
        policy.require_sound(request.policy)
        async with self._database.transaction():
            key = await self._store.keys.require(request.key_id, lock=True)
            if policy.is_approved(_rules(key), ()):
                key = await self._put_policy(key, request.policy, call)
            # Else a manager could do without the approvers: relax the policy, sign, put it back.
            elif _proposed(key) != request.policy or key["proposer_id"] != call.user.user_id:
                proposal = {"proposal": request.policy, "proposer_id": call.user.user_id, "proposal_approved_by": []}
                key = await self._change(key, "policy proposed", call, proposal_id=new_id(), **proposal)
        return pb.SetPolicyResponse(key=_key(key))

    async def ApprovePolicy(self, request: pb.ApprovePolicyRequest, call: RequestContext) -> pb.ApprovePolicyResponse:
        async with self._database.transaction():
            key = await self._store.keys.require(request.key_id, lock=True)
            proposal, rules = _proposed(key), _rules(key)
            if proposal is None or key["proposal_id"] != request.proposal_id:
                raise ProposalNotFound(proposal_id=request.proposal_id)
            user_id = call.user.user_id
            policy.check_approver(rules, key["proposer_id"], user_id)
            approved_by = [*(each for each in key["proposal_approved_by"] if each != user_id), user_id]
            key = await self._change(key, "policy approved", call, proposal_approved_by=approved_by)
            if policy.is_approved(rules, approved_by):
                key = await self._put_policy(key, proposal, call)
        return pb.ApprovePolicyResponse(key=_key(key))

    async def LockKey(self, request: pb.LockKeyRequest, call: RequestContext) -> pb.LockKeyResponse:
        return pb.LockKeyResponse(key=await self._set_locked(request.key_id, True, call))

    async def UnlockKey(self, request: pb.UnlockKeyRequest, call: RequestContext) -> pb.UnlockKeyResponse:
        return pb.UnlockKeyResponse(key=await self._set_locked(request.key_id, False, call))

    async def Sign(self, request: pb.SignRequest, call: RequestContext) -> pb.SignResponse:
        payload = payloads.read(request)
        # Key-service is asked before the key's row is locked: nobody waits for it but this call.
        secret = await self._secret(await self._store.keys.require(request.key_id))
        async with self._database.transaction():
            key = await self._locked(request.key_id)
            earlier = await self._earlier(request, payload, call)
            if earlier is not None:
                return pb.SignResponse(signing=_signing(earlier))
            if payload.kind == "ethereum_transaction" and key["curve"] != Curve.SECP256K1:
                raise KeyKindUnsuitable(key_id=request.key_id, why="Ethereum signs on secp256k1")
            rules = _rules(key)
            policy.check(rules, payload)
            signing = await self._store.signings.insert(
                signing_id=new_id(),
                key_id=request.key_id,
                state="PENDING",
                request=request.SerializeToString(),
                payload=payload.bytes_to_sign,
                slot=payload.slot,
                destination=payload.destination,
                asset=payload.asset,
                amount=Decimal(payload.amount),
                requester_id=call.user.user_id,
                request_id=request.request_id,
            )
            if policy.is_approved(rules, ()):
                signing = await self._sign(key, signing, secret, call)
            else:
                await self._note(key, "requested", call, signing)
        return pb.SignResponse(signing=_signing(signing))

    async def ApproveSigning(
        self, request: pb.ApproveSigningRequest, call: RequestContext
    ) -> pb.ApproveSigningResponse:
        found = await self._store.signings.require(request.signing_id)
        secret = await self._secret(await self._store.keys.require(found["key_id"]))
        async with self._database.transaction():
            key = await self._locked(found["key_id"])
            signing = await self._store.signings.require(request.signing_id)
            if signing["state"] == "SIGNED" and call.user.user_id in signing["approved_by"]:
                return pb.ApproveSigningResponse(signing=_signing(signing))
            _require_pending(signing)
            rules = _rules(key)
            policy.check_approver(rules, signing["requester_id"], call.user.user_id)
            # A second approval of the same user changes nothing.
            await self._store.approvals.insert_new(signing_id=request.signing_id, user_id=call.user.user_id)
            await self._note(key, "approved", call, signing)
            signing = await self._store.signings.require(request.signing_id)
            if policy.is_approved(rules, signing["approved_by"]):
                policy.check(rules, payloads.read(pb.SignRequest.FromString(signing["request"])))
                signing = await self._sign(key, signing, secret, call)
        return pb.ApproveSigningResponse(signing=_signing(signing))

    async def RejectSigning(self, request: pb.RejectSigningRequest, call: RequestContext) -> pb.RejectSigningResponse:
        found = await self._store.signings.require(request.signing_id)
        async with self._database.transaction():
            key = await self._store.keys.require(found["key_id"], lock=True)
            signing = await self._store.signings.require(request.signing_id)
            if signing["requester_id"] != call.user.user_id:
                policy.check_approver(_rules(key), signing["requester_id"], call.user.user_id)
            if signing["state"] != "REJECTED":
                _require_pending(signing)
                signing = await self._store.signings.change(request.signing_id, state="REJECTED")
                await self._note(key, "rejected", call, signing)
        return pb.RejectSigningResponse(signing=_signing(signing))

    async def GetSigning(self, request: pb.GetSigningRequest, call: RequestContext) -> pb.GetSigningResponse:
        return pb.GetSigningResponse(signing=_signing(await self._store.signings.require(request.signing_id)))

    async def ListSignings(self, request: pb.ListSigningsRequest, call: RequestContext) -> pb.ListSigningsResponse:
        await self._store.keys.require(request.key_id)
        fetch = partial(self._store.signings.page, key_id=request.key_id)
        rows, more = await self._pager.page(request, call, fetch, by="signing_id")
        return pb.ListSigningsResponse(signings=map(_signing, rows), next_page_token=more)

    async def ListKeyEvents(self, request: pb.ListKeyEventsRequest, call: RequestContext) -> pb.ListKeyEventsResponse:
        await self._store.keys.require(request.key_id)
        fetch = partial(self._store.events.page, key_id=request.key_id)
        rows, more = await self._pager.page(request, call, fetch, by="event_id")
        return pb.ListKeyEventsResponse(events=map(_event, rows), next_page_token=more)

    async def _keep(
        self,
        call: RequestContext,
        action: str,
        label: str,
        curve: Curve,
        secret: bytes,
        rules: pb.SigningPolicy,
        hd_root: bool = False,
        **place: Any,
    ) -> Row:
        """Seal and store a new key; the one that another call has derived meanwhile, if it has. `place` is the root
        and the path of a derived one.

        Raises PrivateKeyExists.
        """
        policy.require_sound(rules)
        key_id = new_id()
        sealed = await self._fields.seal(secret, subject=_subject(key_id), field=_FIELD)
        public = curves.public_of_seed(curve, secret) if hd_root else curves.public_of(curve, secret)
        account = "" if hd_root else curves.ethereum_account(curve, secret)
        async with self._database.transaction():
            row = await self._store.keys.insert_new(
                key_id=key_id,
                label=label,
                curve=curve,
                secret_sealed=sealed,
                public_key=public,
                ethereum_account=account,
                policy=rules,
                hd_root=hd_root,
                **place,
            )
            if row is not None:
                await self._note(row, action, call)
                return row
            if place and (derived := await self._store.keys.find(**place)) is not None:
                return derived
            same = await self._store.keys.find(curve=curve, public_key=public, hd_root=hd_root)
            assert same is not None, "nothing else keeps a key out, and none is ever deleted"
            raise PrivateKeyExists(key_id=same["key_id"])

    async def _secret(self, key: Row) -> bytes:
        return await self._fields.open(key["secret_sealed"], subject=_subject(key["key_id"]), field=_FIELD)

    async def _sign(self, key: Row, signing: Row, secret: bytes, call: RequestContext) -> Row:
        """Within the limits, in the transaction that holds the key."""
        request = pb.SignRequest.FromString(signing["request"])
        payload = payloads.read(request)
        for limit in _rules(key).limits:
            used = await self._store.usage(key["key_id"], limit.period.ToTimedelta(), limit.asset)
            policy.check_limit(limit, payload, used)
        signature = payloads.sign(request, Curve(key["curve"]), secret)
        await self._note(key, "signed", call, signing)
        return await self._store.set_signed(signing["signing_id"], signature)

    async def _earlier(self, request: pb.SignRequest, payload: payloads.Payload, call: RequestContext) -> Row | None:
        """The signing that this request, or its slot, already has. Raises IdempotencyKeyReused, SlotTaken."""
        earlier = await self._store.signings.find(
            key_id=request.key_id, requester_id=call.user.user_id, request_id=request.request_id
        )
        if earlier is not None:
            if (earlier["payload"], earlier["slot"]) != (payload.bytes_to_sign, payload.slot):
                raise IdempotencyKeyReused(key=request.request_id)
            return earlier
        earlier = await self._store.in_slot(request.key_id, payload.slot) if payload.slot else None
        if earlier is not None and earlier["payload"] != payload.bytes_to_sign:
            raise SlotTaken(slot=payload.slot, signing_id=earlier["signing_id"])
        return earlier

    async def _locked(self, key_id: str) -> Row:
        """The key, held until the transaction ends, if it may sign."""
        key = await self._store.keys.require(key_id, lock=True)
        _require_unlocked(key)
        if key["hd_root"]:
            raise KeyKindUnsuitable(key_id=key_id, why="the root of a hierarchy derives keys and does not sign")
        return key

    async def _set_locked(self, key_id: str, locked: bool, call: RequestContext) -> pb.PrivateKey:
        async with self._database.transaction():
            key = await self._store.keys.require(key_id, lock=True)
            return _key(await self._change(key, "locked" if locked else "unlocked", call, locked=locked))

    async def _put_policy(self, key: Row, rules: pb.SigningPolicy, call: RequestContext) -> Row:
        """Put a policy in force; what was proposed before is forgotten."""
        forgotten: dict[str, Any] = {
            "proposal_id": None,
            "proposal": None,
            "proposer_id": None,
            "proposal_approved_by": [],
        }
        return await self._change(key, "policy set", call, policy=rules, **forgotten)

    async def _change(self, key: Row, action: str, call: RequestContext, **values: Any) -> Row:
        changed = await self._store.keys.change(key["key_id"], **values)
        await self._note(changed, action, call)
        return changed

    async def _note(self, key: Row, action: str, call: RequestContext, signing: Row | None = None) -> None:
        """Add to the key's events."""
        await self._store.events.insert(
            event_id=new_id(),
            key_id=key["key_id"],
            action=action,
            user_id=call.user.user_id,
            request_id=call.request_id,
            signing_id=signing["signing_id"] if signing is not None else None,
        )


def _require_unlocked(key: Row) -> None:
    if key["locked"]:
        raise PrivateKeyLocked(key_id=key["key_id"])


def _require_pending(signing: Row) -> None:
    if signing["state"] != "PENDING":
        raise SigningNotPending(signing_id=signing["signing_id"], state=signing["state"].lower())


def _subject(key_id: str) -> str:
    """What the key's data key is about: it is this key's alone."""
    return f"private-key {key_id}"


def _curve(value: int) -> Curve:
    return Curve(text_of(pb.Curve, value))


def _rules(key: Row) -> pb.SigningPolicy:
    return json_format.Parse(key["policy"], pb.SigningPolicy())


def _proposed(key: Row) -> pb.SigningPolicy | None:
    return json_format.Parse(key["proposal"], pb.SigningPolicy()) if key["proposal"] is not None else None


def _key(row: Row) -> pb.PrivateKey:
    return _key_of(row, proposal=_proposal_of(row) if row["proposal"] is not None else None)
