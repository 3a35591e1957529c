"""KeyService for people, VaultService for services: proto to rules and back."""

import json
from datetime import timedelta
from functools import partial
from operator import attrgetter
from typing import Any

import asyncpg
from google.protobuf.duration_pb2 import Duration

from nexus.platform.key_service.v1 import key_service_pb2 as pb
from nexus.platform.key_service.v1 import vault_pb2 as vault_pb
from services.chassis.clock import timestamp
from services.chassis.context import RequestContext
from services.chassis.ids import new_id
from services.chassis.paging import Pager
from services.chassis.service import Service
from services.platform.key_service import material
from services.platform.key_service.keyring import Keyring
from services.platform.key_service.lifecycle import PEOPLE, Key
from services.platform.key_service.material import Algorithm
from services.platform.key_service.roots import LocalRoot, Roots, VaultRoot
from services.platform.key_service.spec import Config
from services.platform.key_service.store import KeyStore, Use, Version

_TEND_SECONDS = 5.0
_ROOT_SECONDS = 60.0
_FORGET_SECONDS = 3600.0
_REWRAP = 1000  # in one call: it must be done within its time


class KeyService:
    def __init__(self, service: Service) -> None:
        self._config: Config = service.config
        self._store = KeyStore(service.database)
        self._pager = Pager(service.sealer)
        self._keyring = _keyring(service)
        service.every(_TEND_SECONDS, self._keyring.rotate_due)
        service.every(_TEND_SECONDS, self._keyring.destroy_due)
        service.every(_ROOT_SECONDS, self._keyring.move_to_current_root)
        service.every(_FORGET_SECONDS, self._forget_uses)

    async def CreateKey(self, request: pb.CreateKeyRequest, call: RequestContext) -> pb.CreateKeyResponse:
        key = await self._keyring.create(
            call.tenant_id, PEOPLE, request.name, "", _algorithm(request.algorithm), _period(request)
        )
        return pb.CreateKeyResponse(key=_key(key))

    async def GetKey(self, request: pb.GetKeyRequest, call: RequestContext) -> pb.GetKeyResponse:
        return pb.GetKeyResponse(key=_key(await self._keyring.get(request.key_id)))

    async def ListKeys(self, request: pb.ListKeysRequest, call: RequestContext) -> pb.ListKeysResponse:
        keys, more = await self._pager.page(request, call, self._store.page, by=attrgetter("key_id"))
        return pb.ListKeysResponse(keys=map(_key, keys), next_page_token=more)

    async def ListPublicKeys(
        self, request: pb.ListPublicKeysRequest, call: RequestContext
    ) -> pb.ListPublicKeysResponse:
        versions = await self._keyring.public_keys(await self._keyring.get(request.key_id))
        return pb.ListPublicKeysResponse(public_keys=map(_public_key, versions))

    async def ListKeyUses(self, request: pb.ListKeyUsesRequest, call: RequestContext) -> pb.ListKeyUsesResponse:
        key = await self._keyring.get(request.key_id)
        rows, more = await self._pager.page(request, call, partial(self._store.uses, key.key_id), by="use_id")
        return pb.ListKeyUsesResponse(uses=map(_use, rows), next_page_token=more)

    async def RotateKey(self, request: pb.RotateKeyRequest, call: RequestContext) -> pb.RotateKeyResponse:
        return pb.RotateKeyResponse(key=_key(await self._keyring.rotate(request.key_id)))

    async def SetRotationPolicy(
        self, request: pb.SetRotationPolicyRequest, call: RequestContext
    ) -> pb.SetRotationPolicyResponse:
        key = await self._keyring.set_rotation_period(request.key_id, _period(request))
        return pb.SetRotationPolicyResponse(key=_key(key))

    async def SetMinimumVersion(
        self, request: pb.SetMinimumVersionRequest, call: RequestContext
    ) -> pb.SetMinimumVersionResponse:
        key = await self._keyring.set_minimum_version(
            request.key_id, request.minimum_version, abandon_older=request.abandon_older
        )
        return pb.SetMinimumVersionResponse(key=_key(key))

    async def DisableKey(self, request: pb.DisableKeyRequest, call: RequestContext) -> pb.DisableKeyResponse:
        return pb.DisableKeyResponse(key=_key(await self._keyring.set_enabled(request.key_id, enabled=False)))

    async def EnableKey(self, request: pb.EnableKeyRequest, call: RequestContext) -> pb.EnableKeyResponse:
        return pb.EnableKeyResponse(key=_key(await self._keyring.set_enabled(request.key_id, enabled=True)))

    async def ScheduleKeyDestruction(
        self, request: pb.ScheduleKeyDestructionRequest, call: RequestContext
    ) -> pb.ScheduleKeyDestructionResponse:
        delay = request.delay.ToTimedelta() if request.HasField("delay") else self._config.destruction_delay
        key = await self._keyring.schedule_destruction(request.key_id, delay, self._config.minimum_destruction_delay)
        return pb.ScheduleKeyDestructionResponse(key=_key(key))

    async def CancelKeyDestruction(
        self, request: pb.CancelKeyDestructionRequest, call: RequestContext
    ) -> pb.CancelKeyDestructionResponse:
        return pb.CancelKeyDestructionResponse(key=_key(await self._keyring.cancel_destruction(request.key_id)))

    async def Encrypt(self, request: pb.EncryptRequest, call: RequestContext) -> pb.EncryptResponse:
        primary = await self._keyring.primary(request.key_id)
        ciphertext = await self._keyring.encrypt(primary, request.plaintext, _used_by(call, request))
        return pb.EncryptResponse(ciphertext=ciphertext, key_version=primary.version)

    async def Decrypt(self, request: pb.DecryptRequest, call: RequestContext) -> pb.DecryptResponse:
        plaintext, version = await self._keyring.decrypt(PEOPLE, request.ciphertext, _used_by(call, request))
        return pb.DecryptResponse(plaintext=plaintext, key_id=version.key.key_id, key_version=version.version)

    async def Rewrap(self, request: pb.RewrapRequest, call: RequestContext) -> pb.RewrapResponse:
        ciphertext, version = await self._keyring.rewrap(PEOPLE, request.ciphertext, _used_by(call, request))
        return pb.RewrapResponse(ciphertext=ciphertext, key_version=version)

    async def GenerateDataKey(
        self, request: pb.GenerateDataKeyRequest, call: RequestContext
    ) -> pb.GenerateDataKeyResponse:
        primary = await self._keyring.primary(request.key_id)
        data_key, ciphertext = await self._keyring.generate_data_key(primary, _used_by(call, request))
        return pb.GenerateDataKeyResponse(plaintext=data_key, ciphertext=ciphertext, key_version=primary.version)

    async def Sign(self, request: pb.SignRequest, call: RequestContext) -> pb.SignResponse:
        primary = await self._keyring.primary(request.key_id)
        signature = await self._keyring.sign(primary, request.message, _used_by(call))
        return pb.SignResponse(signature=signature, key_version=primary.version)

    async def Verify(self, request: pb.VerifyRequest, call: RequestContext) -> pb.VerifyResponse:
        primary = await self._keyring.primary(request.key_id)
        valid = await self._keyring.verify(
            primary, request.message, request.signature, request.key_version, _used_by(call)
        )
        return pb.VerifyResponse(valid=valid)

    async def ComputeHmac(self, request: pb.ComputeHmacRequest, call: RequestContext) -> pb.ComputeHmacResponse:
        primary = await self._keyring.primary(request.key_id)
        mac = await self._keyring.compute_hmac(primary, request.message, _used_by(call))
        return pb.ComputeHmacResponse(hmac=mac, key_version=primary.version)

    async def VerifyHmac(self, request: pb.VerifyHmacRequest, call: RequestContext) -> pb.VerifyHmacResponse:
        primary = await self._keyring.primary(request.key_id)
        valid = await self._keyring.verify_hmac(
            primary, request.message, request.hmac, request.key_version, _used_by(call)
        )
        return pb.VerifyHmacResponse(valid=valid)

    async def _forget_uses(self) -> None:
        await self._keyring.forget_uses(self._config.keep_uses)


class VaultService:
    def __init__(self, service: Service) -> None:
        self._config: Config = service.config
        self._keyring = _keyring(service)

    async def EnsureKey(self, request: vault_pb.EnsureKeyRequest, call: RequestContext) -> vault_pb.EnsureKeyResponse:
        algorithm = _algorithm(request.algorithm)
        found = await self._ensure(request, call, algorithm, _period(request))
        found.key.require_algorithm(algorithm)
        return vault_pb.EnsureKeyResponse(key=_key(found.key))

    async def Seal(self, request: vault_pb.SealRequest, call: RequestContext) -> vault_pb.SealResponse:
        primary = await self._sealing_key(request, call)
        ciphertext = await self._keyring.encrypt(primary, request.plaintext, _used_by(call, request))
        return vault_pb.SealResponse(ciphertext=ciphertext, key_version=primary.version)

    async def Open(self, request: vault_pb.OpenRequest, call: RequestContext) -> vault_pb.OpenResponse:
        plaintext, version = await self._keyring.decrypt(_owner(call), request.ciphertext, _used_by(call, request))
        return vault_pb.OpenResponse(plaintext=plaintext, key_version=version.version)

    async def OpenAll(self, request: vault_pb.OpenAllRequest, call: RequestContext) -> vault_pb.OpenAllResponse:
        opened = await self._keyring.decrypt_all(_owner(call), request.ciphertexts, _used_by(call))
        return vault_pb.OpenAllResponse(opened=[vault_pb.Opened(plaintext=plaintext) for plaintext in opened])

    async def Reseal(self, request: vault_pb.ResealRequest, call: RequestContext) -> vault_pb.ResealResponse:
        ciphertext, version = await self._keyring.rewrap(_owner(call), request.ciphertext, _used_by(call, request))
        return vault_pb.ResealResponse(ciphertext=ciphertext, key_version=version)

    async def IssueDataKey(
        self, request: vault_pb.IssueDataKeyRequest, call: RequestContext
    ) -> vault_pb.IssueDataKeyResponse:
        primary = await self._sealing_key(request, call)
        data_key, ciphertext = await self._keyring.generate_data_key(primary, _used_by(call, request))
        return vault_pb.IssueDataKeyResponse(plaintext=data_key, ciphertext=ciphertext, key_version=primary.version)

    async def SignMessage(
        self, request: vault_pb.SignMessageRequest, call: RequestContext
    ) -> vault_pb.SignMessageResponse:
        primary = await self._primary(request, call)
        signature = await self._keyring.sign(primary, request.message, _used_by(call))
        return vault_pb.SignMessageResponse(signature=signature, key_version=primary.version)

    async def VerifySignature(
        self, request: vault_pb.VerifySignatureRequest, call: RequestContext
    ) -> vault_pb.VerifySignatureResponse:
        primary = await self._primary(request, call)
        valid = await self._keyring.verify(
            primary, request.message, request.signature, request.key_version, _used_by(call)
        )
        return vault_pb.VerifySignatureResponse(valid=valid)

    async def ComputeMac(
        self, request: vault_pb.ComputeMacRequest, call: RequestContext
    ) -> vault_pb.ComputeMacResponse:
        primary = await self._primary(request, call)
        mac = await self._keyring.compute_hmac(primary, request.message, _used_by(call))
        return vault_pb.ComputeMacResponse(mac=mac, key_version=primary.version)

    async def VerifyMac(self, request: vault_pb.VerifyMacRequest, call: RequestContext) -> vault_pb.VerifyMacResponse:
        primary = await self._primary(request, call)
        valid = await self._keyring.verify_hmac(
            primary, request.message, request.mac, request.key_version, _used_by(call)
        )
        return vault_pb.VerifyMacResponse(valid=valid)

    async def FindPublicKeys(
        self, request: vault_pb.FindPublicKeysRequest, call: RequestContext
    ) -> vault_pb.FindPublicKeysResponse:
        versions = await self._keyring.public_keys((await self._primary(request, call)).key)
        return vault_pb.FindPublicKeysResponse(public_keys=map(_public_key, versions))

    async def RotateOwnKey(
        self, request: vault_pb.RotateOwnKeyRequest, call: RequestContext
    ) -> vault_pb.RotateOwnKeyResponse:
        key = (await self._primary(request, call)).key
        return vault_pb.RotateOwnKeyResponse(key=_key(await self._keyring.rotate(key.key_id)))

    async def DestroyOwnKey(
        self, request: vault_pb.DestroyOwnKeyRequest, call: RequestContext
    ) -> vault_pb.DestroyOwnKeyResponse:
        key = await self._keyring.named(_owner(call), request.key, request.subject)
        return vault_pb.DestroyOwnKeyResponse(key=_key(await self._keyring.destroy(key)))

    async def ShredSubject(
        self, request: vault_pb.ShredSubjectRequest, call: RequestContext
    ) -> vault_pb.ShredSubjectResponse:
        return vault_pb.ShredSubjectResponse(destroyed_keys=await self._keyring.shred(request.subject))

    async def RewrapKeys(
        self, request: vault_pb.RewrapKeysRequest, call: RequestContext
    ) -> vault_pb.RewrapKeysResponse:
        moved = await self._keyring.move_to_current_root(_REWRAP)
        current, roots = await self._keyring.wrapped_by()
        return vault_pb.RewrapKeysResponse(
            rewrapped_versions=moved,
            current_root=current,
            roots=[vault_pb.RootUse(root=root, key_versions=versions) for root, versions in roots.items()],
        )

    async def _sealing_key(self, request: Any, call: RequestContext) -> Version:
        """A key that nobody asked for rotates all the same."""
        return await self._ensure(request, call, Algorithm.AES_256_GCM, self._config.sealing_key_period)

    async def _ensure(
        self, request: Any, call: RequestContext, algorithm: Algorithm, period: timedelta | None
    ) -> Version:
        return await self._keyring.ensure(call.tenant_id, _owner(call), request.key, request.subject, algorithm, period)

    async def _primary(self, request: Any, call: RequestContext) -> Version:
        return await self._keyring.primary_named(_owner(call), request.key, request.subject)


def _keyring(service: Service) -> Keyring:
    config: Config = service.config
    vault = None
    if config.vault_addr is not None and config.vault_token is not None:
        vault = VaultRoot(
            config.vault_addr, config.vault_token.get_secret_value(), config.vault_key, config.vault_mount
        )
    return Keyring(service.database, Roots(LocalRoot(service.sealer), vault))


def _owner(call: RequestContext) -> str:
    assert call.caller is not None, "only services get here"
    return call.caller


def _used_by(call: RequestContext, request: Any = None) -> Use:
    """The call as a use of a key; `request` is one with a context."""
    return Use(
        use_id=new_id(),
        operation=call.method.name,
        caller="" if call.signed_in else _owner(call),
        user_id=call.signed_in.user_id if call.signed_in else "",
        request_id=call.request_id,
        context=dict(request.context) if request is not None else {},
    )


def _algorithm(value: int) -> Algorithm:
    return Algorithm(pb.KeyAlgorithm.Name(value).removeprefix("KEY_ALGORITHM_"))  # type: ignore[arg-type]


def _period(request: Any) -> timedelta | None:
    return request.rotation_period.ToTimedelta() if request.HasField("rotation_period") else None


def _key(key: Key) -> pb.Key:
    period = None
    if key.rotation_period is not None:
        period = Duration()
        period.FromTimedelta(key.rotation_period)
    return pb.Key(
        key_id=key.key_id,
        name=key.name,
        owner=key.owner,
        subject=key.subject,
        algorithm=pb.KeyAlgorithm.Value(f"KEY_ALGORITHM_{key.algorithm.name}"),
        state=pb.KeyState.Value(f"KEY_STATE_{key.state.name}"),
        primary_version=key.primary_version,
        minimum_version=key.minimum_version,
        rotation_period=period,
        next_rotation_time=timestamp(key.next_rotation_time) if key.next_rotation_time else None,
        create_time=timestamp(key.create_time),
        destroy_time=timestamp(key.destroy_time) if key.destroy_time else None,
    )


def _public_key(version: Version) -> pb.PublicKey:
    assert version.public is not None, "a signing key has a public part"
    return pb.PublicKey(
        key_version=version.version, pem=material.pem(version.public), create_time=timestamp(version.create_time)
    )


def _use(row: asyncpg.Record) -> pb.KeyUse:
    return pb.KeyUse(
        use_id=row["use_id"],
        key_version=row["version"],
        operation=row["operation"],
        caller=row["caller"],
        user_id=row["user_id"],
        request_id=row["request_id"],
        context=json.loads(row["context"]),
        succeeded=row["succeeded"],
        use_time=timestamp(row["create_time"]),
    )
