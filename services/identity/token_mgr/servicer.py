"""TokenService: proto to rules and back."""

import time
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any

from joserfc import jwt
from joserfc.errors import JoseError

from nexus.identity.token_mgr.v1 import token_mgr_pb2 as pb
from nexus.identity.token_mgr.v1.faults import (
    PermissionNotHeld,
    RefreshTokenInvalid,
    RefreshTokenReused,
    ScopeTooWide,
    SessionEnded,
    SubjectTokenInvalid,
)
from nexus.modules.puabo_os.v1.modules_pb2 import ResolveEntitlementsRequest
from nexus.modules.puabo_os.v1.modules_pb2_grpc import ModuleServiceStub
from nexus.type.v1.faults import TokenExpired, TokenInvalid
from services.chassis.clock import moment, now, timestamp
from services.chassis.context import RequestContext
from services.chassis.ids import hash_secret, new_id, new_secret
from services.chassis.issuers import tenant_issuer
from services.chassis.service import Service
from services.chassis.tokens import TokenVerifier
from services.identity.token_mgr.claims import Grant, access_claims, acting, half_hash, narrowed
from services.identity.token_mgr.keys import Algorithm, KeyRing, Vault
from services.identity.token_mgr.rotation import Verdict, judge
from services.identity.token_mgr.spec import Config
from services.identity.token_mgr.store import KeyStore, TokenStore

_FORGET_EXPIRED_SECONDS = 3600.0
_REMEMBER_LONGER_SECONDS = 60.0
"""Clocks differ, and the last token of a grant may be issued while it ends."""
_TEND_KEYS_SECONDS = 5.0
_ACCESS, _REFRESH = "access_token", "refresh_token"
_ACCESS_ALGORITHMS = (Algorithm.ES256,)
"""How access tokens are signed. No verifier of the platform takes any other."""
_UNEXPIRED = jwt.JWTClaimsRegistry(exp={"essential": True}, sid={"essential": True}, jti={"essential": True})


class TokenService:
    def __init__(self, service: Service) -> None:
        self._config: Config = service.config
        self._settings = service.settings
        self._database = service.database
        self._signals = service.signals
        self._access_lifetime = timedelta(seconds=service.settings.access_token_seconds)
        self._store = TokenStore(service.database)
        self._modules = service.clients.stub(ModuleServiceStub)
        self._keys = KeyRing(
            KeyStore(service.database),
            Vault(service.clients, service.settings.platform_tenant),
            token_lifetime=max(self._access_lifetime, self._config.id_token_lifetime),
            propagation=self._config.key_propagation,
            key_lifetime=self._config.key_lifetime,
        )
        self._verifier = TokenVerifier(service.settings, service.signals, self._key_set)
        service.every(_TEND_KEYS_SECONDS, self._keys.tend)
        service.every(_FORGET_EXPIRED_SECONDS, self._store.forget_expired)

    async def IssueTokens(self, request: pb.IssueTokensRequest, call: RequestContext) -> pb.IssueTokensResponse:
        session_expires = moment(request.session_expire_time)
        permissions = await self._entitled(request.permissions)
        async with self._database.transaction():
            await self._store.insert_family(request.session_id, request.user_id, session_expires)
            tokens = await self._issue(
                call.tenant_id,
                Grant(
                    request.session_id,
                    request.user_id,
                    permissions,
                    session_expires,
                    assurance=request.assurance,
                    methods=list(request.methods),
                    auth_time=moment(request.auth_time) if request.HasField("auth_time") else None,
                    second_factor=_second_factor(request),
                ),
            )
        return pb.IssueTokensResponse(tokens=tokens)

    async def InspectRefreshToken(
        self, request: pb.InspectRefreshTokenRequest, call: RequestContext
    ) -> pb.InspectRefreshTokenResponse:
        found = await self._store.find(hash_secret(request.refresh_token))
        if found is None:
            raise RefreshTokenInvalid()
        return pb.InspectRefreshTokenResponse(
            user_id=found["user_id"] or "",
            session_id=found["session_id"],
            client_id=found["client_id"],
            scope=found["scope"],
            parent_session_id=found["parent_session_id"] or "",
            auth_time=timestamp(found["auth_time"]) if found["auth_time"] else None,
        )

    async def RefreshTokens(self, request: pb.RefreshTokensRequest, call: RequestContext) -> pb.RefreshTokensResponse:
        token_hash = hash_secret(request.refresh_token)
        permissions = await self._entitled(request.permissions)
        async with self._database.transaction():
            found = await self._store.find_locked(token_hash)
            if found is None or found["client_id"] != request.client_id:
                raise RefreshTokenInvalid()
            scope = narrowed(found["scope"], request.scope)
            if scope is None:
                raise ScopeTooWide(scope=request.scope)
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
                grant = Grant(
                    found["session_id"],
                    found["user_id"],
                    permissions,
                    found["family_expires"],
                    found["client_id"],
                    scope,
                    found["audiences"],
                    assurance=request.assurance,
                    methods=list(request.methods),
                    auth_time=moment(request.auth_time) if request.HasField("auth_time") else found["auth_time"],
                    second_factor=_second_factor(request),
                )
                tokens = await self._issue(call.tenant_id, grant)
                return pb.RefreshTokensResponse(tokens=tokens)
            if verdict is Verdict.REUSED:
                await self._revoke([found["session_id"]])
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
        return pb.RevokeFamiliesResponse(revoked_families=await self._revoke(list(request.session_ids)))

    async def RevokeUserGrants(
        self, request: pb.RevokeUserGrantsRequest, call: RequestContext
    ) -> pb.RevokeUserGrantsResponse:
        revoked = await self._store.revoke_user(request.user_id)
        return pb.RevokeUserGrantsResponse(revoked_families=await self._tell(revoked))

    async def IssueGrant(self, request: pb.IssueGrantRequest, call: RequestContext) -> pb.IssueGrantResponse:
        parent = request.parent_session_id or None
        expires = moment(request.expire_time)
        grant = Grant(
            request.grant_id,
            request.user_id or None,
            await self._entitled(request.permissions),
            expires,
            request.client_id,
            request.scope,
            list(request.audiences),
            assurance=request.assurance,
            methods=list(request.methods),
            auth_time=moment(request.auth_time) if request.HasField("auth_time") else None,
        )
        async with self._database.transaction():
            for session_id in {request.parent_session_id, request.consent_session_id} - {""}:
                if await self._store.family(session_id, keep=True) is None:
                    raise SessionEnded()
            await self._store.insert_grant(
                grant.family_id,
                grant.user_id,
                expires,
                client_id=grant.client_id,
                scope=grant.scope,
                audiences=list(grant.audiences),
                parent_session_id=parent,
                auth_time=grant.auth_time,
            )
            tokens = await self._issue(call.tenant_id, grant, refreshable=request.refreshable)
        return pb.IssueGrantResponse(tokens=tokens)

    async def SignIdToken(self, request: pb.SignIdTokenRequest, call: RequestContext) -> pb.SignIdTokenResponse:
        issued = now()
        claims = {
            "iss": tenant_issuer(self._settings, call.tenant_id),
            "sub": request.user_id,
            "aud": request.client_id,
            "iat": int(issued.timestamp()),
            "exp": int((issued + self._config.id_token_lifetime).timestamp()),
            "auth_time": request.auth_time.seconds if request.HasField("auth_time") else None,
            "nonce": request.nonce,
            "sid": request.session_id,
            "acr": request.acr,
            "amr": list(request.amr),
            "at_hash": half_hash(request.access_token) if request.access_token else None,
            "email": request.email,
            "email_verified": request.email_verified if request.email else None,
            "name": request.display_name,
        }
        present = {name: value for name, value in claims.items() if value not in (None, "", [])}
        return pb.SignIdTokenResponse(id_token=await self._sign(present, "JWT", _algorithm(request.algorithm)))

    async def ExchangeToken(self, request: pb.ExchangeTokenRequest, call: RequestContext) -> pb.ExchangeTokenResponse:
        subject = await self._access_claims(request.subject_token, call.tenant_id)
        if subject is None:
            raise SubjectTokenInvalid()
        carried, asked, scope = subject["permissions"], request.scope.split(), subject.get("scope", "")
        permissions = [name for name in asked if name in carried or "*" in carried]
        lacking = set(asked) - set(permissions) - set(scope.split())
        if lacking:
            raise PermissionNotHeld(permission=min(lacking))
        client_id = subject.get("client_id", "")
        grant = Grant(
            subject["sid"],
            None if subject["sub"] == client_id else subject["sub"],
            permissions,
            datetime.fromtimestamp(subject["exp"], UTC),
            client_id or request.actor,
            " ".join(asked),
            list(request.audiences),
            acting(request.actor, subject.get("act")),
        )
        token, expires = await self._access_token(call.tenant_id, grant)
        return pb.ExchangeTokenResponse(access_token=token, expire_time=timestamp(expires), scope=grant.scope)

    async def IntrospectToken(
        self, request: pb.IntrospectTokenRequest, call: RequestContext
    ) -> pb.IntrospectTokenResponse:
        return await self._introspect(request.token, call.tenant_id) or pb.IntrospectTokenResponse(active=False)

    async def RevokeToken(self, request: pb.RevokeTokenRequest, call: RequestContext) -> pb.RevokeTokenResponse:
        token = await self._introspect(request.token, call.tenant_id)
        if token is None or token.client_id != request.client_id or token.actor:
            return pb.RevokeTokenResponse(revoked=False)
        return pb.RevokeTokenResponse(revoked=await self._revoke([token.session_id]) > 0)

    async def RotateKeys(self, request: pb.RotateKeysRequest, call: RequestContext) -> pb.RotateKeysResponse:
        current, upcoming = await self._keys.rotate(
            _algorithm(request.algorithm), withdraw_former=request.withdraw_former
        )
        return pb.RotateKeysResponse(current_kid=current, next_kid=upcoming)

    async def GetJwks(self, request: pb.GetJwksRequest, call: RequestContext) -> pb.GetJwksResponse:
        algorithms = list(Algorithm) if request.include_id_token_keys else _ACCESS_ALGORITHMS
        return pb.GetJwksResponse(keys=[pb.Jwk(**jwk) for jwk in await self._keys.public(algorithms)])

    async def _entitled(self, held: Sequence[str]) -> list[str]:
        """Those of the permissions held that are granted by modules which the tenant has switched on."""
        if not held:
            return []
        answer = await self._modules.ResolveEntitlements(ResolveEntitlementsRequest(held_permissions=held))
        return list(answer.permissions)

    async def _key_set(self) -> Any:
        return {"keys": await self._keys.public(_ACCESS_ALGORITHMS)}

    async def _revoke(self, family_ids: list[str]) -> int:
        """Revoke families and the grants that came from them."""
        return await self._tell(await self._store.revoke(family_ids))

    async def _tell(self, revoked: Sequence[Mapping[str, Any]]) -> int:
        """Tell every process which grants have been revoked; of sessions session-mgr tells them. Returns how many
        families it was."""
        grants = [family["session_id"] for family in revoked if family["client_id"]]
        await self._signals.end_sessions(
            grants, time.time() + self._settings.access_token_seconds + _REMEMBER_LONGER_SECONDS
        )
        return len(revoked)

    async def _introspect(self, token: str, tenant_id: str) -> pb.IntrospectTokenResponse | None:
        """What a token of the tenant stands for; None if it is not good."""
        if token.count(".") != 2:
            return await self._introspect_refresh_token(token, tenant_id)
        claims = await self._access_claims(token, tenant_id)
        if claims is None:
            return None
        client_id = claims.get("client_id", "")
        audiences = claims["aud"] if isinstance(claims["aud"], list) else [claims["aud"]]
        answer = pb.IntrospectTokenResponse(
            active=True,
            kind=_ACCESS,
            client_id=client_id,
            user_id="" if claims["sub"] == client_id else claims["sub"],
            session_id=claims["sid"],
            scope=claims.get("scope", ""),
            permissions=claims["permissions"],
            audiences=audiences,
            issuer=claims["iss"],
            jti=claims["jti"],
            actor=claims.get("act", {}).get("sub", ""),
        )
        answer.issue_time.FromSeconds(claims["iat"])
        answer.expire_time.FromSeconds(claims["exp"])
        return answer

    async def _access_claims(self, token: str, tenant_id: str) -> dict[str, Any] | None:
        """The claims of an access token of the tenant that is good right now, whoever it is meant for."""
        claims = await self._verified_claims(token)
        # Only access tokens have permissions: an ID token is not one.
        if claims is None or claims.get("tid") != tenant_id or "permissions" not in claims:
            return None
        ended = self._signals.session_ended(claims["sid"])
        return None if ended or await self._store.family(claims["sid"]) is None else claims

    async def _introspect_refresh_token(self, token: str, tenant_id: str) -> pb.IntrospectTokenResponse | None:
        found = await self._store.find(hash_secret(token))
        if found is None or found["revoke_time"] is not None or found["spend_time"] is not None:
            return None
        expires = min(found["token_expires"], found["family_expires"])
        if expires <= now():
            return None
        return pb.IntrospectTokenResponse(
            active=True,
            kind=_REFRESH,
            client_id=found["client_id"],
            user_id=found["user_id"] or "",
            session_id=found["session_id"],
            scope=found["scope"],
            audiences=found["audiences"],
            issuer=tenant_issuer(self._settings, tenant_id),
            expire_time=timestamp(expires),
        )

    async def _verified_claims(self, token: str) -> dict[str, Any] | None:
        """The claims of a token that we signed and that has not expired, whoever it is meant for."""
        try:
            keys = await self._keys.verifying(_ACCESS_ALGORITHMS)
            claims = jwt.decode(token, keys, algorithms=list(_ACCESS_ALGORITHMS)).claims
            _UNEXPIRED.validate(claims)
        except (JoseError, ValueError, TypeError, KeyError, RecursionError):
            return None
        return claims

    async def _issue(self, tenant_id: str, grant: Grant, *, refreshable: bool = True) -> pb.TokenPair:
        """New tokens, the refresh token stored. Neither outlives the grant."""
        access_token, access_expires = await self._access_token(tenant_id, grant)
        pair = pb.TokenPair(access_token=access_token, access_expire_time=timestamp(access_expires))
        if refreshable:
            refresh_token, refresh_expires = new_secret(), min(now() + self._config.refresh_lifetime, grant.expires)
            await self._store.insert_token(hash_secret(refresh_token), grant.family_id, refresh_expires)
            pair.refresh_token = refresh_token
            pair.refresh_expire_time.CopyFrom(timestamp(refresh_expires))
        return pair

    async def _access_token(self, tenant_id: str, grant: Grant) -> tuple[str, datetime]:
        """The token and when it expires."""
        issued = now()
        expires = min(issued + self._access_lifetime, grant.expires)
        claims = access_claims(self._settings, tenant_id, grant, jti=new_id(), issued=issued, expires=expires)
        kind = "at+jwt" if grant.client_id else "JWT"
        return await self._sign(claims, kind, Algorithm.ES256), expires

    async def _sign(self, claims: dict[str, Any], kind: str, algorithm: Algorithm) -> str:
        signing = await self._keys.current(algorithm)
        header = {"alg": algorithm, "kid": signing.kid, "typ": kind}
        return jwt.encode(header, claims, signing.private, algorithms=[algorithm])


def _second_factor(request: pb.IssueTokensRequest | pb.RefreshTokensRequest) -> bool | None:
    return request.second_factor if request.HasField("second_factor") else None


def _algorithm(value: int) -> Algorithm:
    return Algorithm.RS256 if value == pb.SIGNING_ALGORITHM_RS256 else Algorithm.ES256
