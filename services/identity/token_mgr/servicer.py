"""TokenService: proto to rules and back."""

import time
from datetime import datetime, timedelta

from joserfc import jwt

from nexus.identity.token_mgr.v1 import token_mgr_pb2 as pb
from nexus.identity.token_mgr.v1.faults import RefreshTokenInvalid, RefreshTokenReused
from nexus.type.v1.faults import TokenExpired, TokenInvalid
from services.chassis.clock import moment, now, timestamp
from services.chassis.context import RequestContext
from services.chassis.ids import hash_secret, new_id, new_secret
from services.chassis.service import Service
from services.chassis.tokens import ALGORITHM, TokenVerifier
from services.identity.token_mgr.keys import KeyRing
from services.identity.token_mgr.rotation import Verdict, judge
from services.identity.token_mgr.spec import Config
from services.identity.token_mgr.store import TokenStore

_FORGET_EXPIRED_SECONDS = 3600.0


class TokenService:
    def __init__(self, service: Service) -> None:
        self._config: Config = service.config
        self._settings = service.settings
        self._database = service.database
        self._access_lifetime = timedelta(seconds=service.settings.access_token_seconds)
        self._store = TokenStore(service.database)
        self._keys = KeyRing(
            service.database,
            service.sealer,
            token_lifetime=self._access_lifetime,
            propagation=self._config.key_propagation,
        )
        self._verifier = TokenVerifier(service.settings, service.signals, self._key_set)
        service.every(_FORGET_EXPIRED_SECONDS, self._store.forget_expired)

    async def IssueTokens(self, request: pb.IssueTokensRequest, call: RequestContext) -> pb.IssueTokensResponse:
        session_expires = moment(request.session_expire_time)
        async with self._database.transaction():
            await self._store.insert_family(request.session_id, request.user_id, session_expires)
            tokens = await self._issue(
                call.tenant_id,
                request.user_id,
                request.session_id,
                list(request.permissions),
                session_expires,
            )
        return pb.IssueTokensResponse(tokens=tokens)

    async def InspectRefreshToken(
        self, request: pb.InspectRefreshTokenRequest, call: RequestContext
    ) -> pb.InspectRefreshTokenResponse:
        found = await self._store.find(hash_secret(request.refresh_token))
        if found is None:
            raise RefreshTokenInvalid()
        return pb.InspectRefreshTokenResponse(user_id=found["user_id"], session_id=found["session_id"])

    async def RefreshTokens(self, request: pb.RefreshTokensRequest, call: RequestContext) -> pb.RefreshTokensResponse:
        token_hash = hash_secret(request.refresh_token)
        async with self._database.transaction():
            found = await self._store.find_locked(token_hash)
            if found is None:
                raise RefreshTokenInvalid()
            verdict = judge(
                now=now(),
                grace=self._config.refresh_grace,
                token_expires=found["token_expires"],
                spent=found["spend_time"],
                family_expires=found["family_expires"],
                family_revoked=found["revoke_time"],
            )
            if verdict is Verdict.EXCHANGE:
                await self._store.spend(token_hash)
                tokens = await self._issue(
                    call.tenant_id,
                    found["user_id"],
                    found["session_id"],
                    list(request.permissions),
                    found["family_expires"],
                )
                return pb.RefreshTokensResponse(tokens=tokens)
            if verdict is Verdict.REUSED:
                await self._store.revoke([found["session_id"]])
        # Raised only now: a revocation must commit.
        raise RefreshTokenReused() if verdict is Verdict.REUSED else RefreshTokenInvalid()

    async def VerifyToken(self, request: pb.VerifyTokenRequest, call: RequestContext) -> pb.VerifyTokenResponse:
        try:
            user = await self._verifier.verify(request.access_token)
        except (TokenInvalid, TokenExpired):
            return pb.VerifyTokenResponse(active=False)
        response = pb.VerifyTokenResponse(
            active=True,
            tenant_id=user.tenant_id,
            user_id=user.user_id,
            session_id=user.session_id,
            permissions=sorted(user.permissions),
        )
        response.expire_time.FromSeconds(user.token_expires)
        return response

    async def RevokeFamilies(
        self, request: pb.RevokeFamiliesRequest, call: RequestContext
    ) -> pb.RevokeFamiliesResponse:
        return pb.RevokeFamiliesResponse(revoked_families=await self._store.revoke(list(request.session_ids)))

    async def RotateKeys(self, request: pb.RotateKeysRequest, call: RequestContext) -> pb.RotateKeysResponse:
        current, upcoming = await self._keys.rotate()
        return pb.RotateKeysResponse(current_kid=current, next_kid=upcoming)

    async def GetJwks(self, request: pb.GetJwksRequest, call: RequestContext) -> pb.GetJwksResponse:
        return pb.GetJwksResponse(keys=[pb.Jwk(**jwk) for jwk in await self._keys.public()])

    async def _key_set(self) -> dict[str, list[dict[str, str]]]:
        return {"keys": await self._keys.public()}

    async def _issue(
        self, tenant_id: str, user_id: str, session_id: str, permissions: list[str], session_expires: datetime
    ) -> pb.TokenPair:
        """A new pair, its refresh token stored. Neither token outlives the session."""
        issued = now()
        access_expires = min(issued + self._access_lifetime, session_expires)
        refresh_expires = min(issued + self._config.refresh_lifetime, session_expires)
        refresh_token = new_secret()
        await self._store.insert_token(hash_secret(refresh_token), session_id, refresh_expires)
        signing = await self._keys.current()
        claims = {
            "iss": self._settings.token_issuer,
            "aud": self._settings.token_audience,
            "sub": user_id,
            "tid": tenant_id,
            "sid": session_id,
            "permissions": permissions,
            "iat": int(time.time()),
            "exp": int(access_expires.timestamp()),
            "jti": new_id(),
        }
        header = {"alg": ALGORITHM, "kid": signing.kid, "typ": "JWT"}
        return pb.TokenPair(
            access_token=jwt.encode(header, claims, signing.key, algorithms=[ALGORITHM]),
            refresh_token=refresh_token,
            access_expire_time=timestamp(access_expires),
            refresh_expire_time=timestamp(refresh_expires),
        )
