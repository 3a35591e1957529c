"""The token endpoint (RFC 6749, section 3.2) and its neighbours: what clients do without a browser."""

import secrets
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any

from authlib.oauth2 import OAuth2Error
from google.protobuf.timestamp_pb2 import Timestamp

from nexus.identity.session_mgr.v1.session_mgr_pb2 import Session
from nexus.identity.token_mgr.v1 import token_mgr_pb2
from nexus.identity.token_mgr.v1.faults import (
    GrantExists,
    PermissionNotHeld,
    RefreshTokenInvalid,
    RefreshTokenReused,
    ScopeTooWide,
    SessionEnded,
    SubjectTokenInvalid,
)
from nexus.identity.token_mgr.v1.token_mgr_pb2 import SigningAlgorithm
from nexus.identity.token_mgr.v1.token_mgr_pb2_grpc import TokenServiceStub
from nexus.identity.user_auth.v1.faults import UserDisabled, UserNotFound
from nexus.identity.user_auth.v1.user_auth_pb2 import ResolveUserRequest, ResolveUserResponse
from nexus.identity.user_auth.v1.user_auth_pb2_grpc import UserServiceStub
from services.chassis.clock import moment, now, timestamp
from services.chassis.context import RequestContext
from services.chassis.ids import hash_secret, new_id, new_secret
from services.chassis.issuers import tenant_issuer
from services.chassis.service import Service
from services.identity.auth_service_v2 import clients, tickets
from services.identity.auth_service_v2.accounts import Accounts
from services.identity.auth_service_v2.authorization import verifies
from services.identity.auth_service_v2.clients import Client, held, permissions_in
from services.identity.auth_service_v2.forms import Form
from services.identity.auth_service_v2.spec import Config
from services.identity.auth_service_v2.store import Store
from services.identity.auth_service_v2.tickets import Tickets

ACCESS_TOKEN_TYPE = "urn:ietf:params:oauth:token-type:access_token"
_USER_CODE_LETTERS = "BCDFGHJKLMNPQRSTVWXZ"
"""RFC 8628, section 6.1: no vowels, so no words; none that looks like another."""
_USER_CODE_LENGTH = 8
_SLOWER_SECONDS = 5
_INVALID_GRANT = "the grant is not valid, or not any more"


class Grants:
    """Clients and their tokens."""

    def __init__(self, service: Service, accounts: Accounts, sealed: Tickets) -> None:
        self._config: Config = service.config
        self._settings = service.settings
        self._database = service.database
        self._accounts = accounts
        self._tickets = sealed
        self._store = Store(service.database)
        self._tokens = service.clients.stub(TokenServiceStub)
        self._users = service.clients.stub(UserServiceStub)

    async def token(self, client: Client, form: Form, call: RequestContext) -> dict[str, Any]:
        """The token endpoint's answer. Raises OAuth2Error."""
        grant_type = form.require("grant_type")
        redeem = {
            clients.AUTHORIZATION_CODE: self._redeem_code,
            clients.REFRESH_TOKEN: self._refresh,
            clients.CLIENT_CREDENTIALS: self._act_for_itself,
            clients.DEVICE_CODE: self._redeem_device,
            clients.TOKEN_EXCHANGE: self._exchange,
        }.get(grant_type)
        if redeem is None:
            raise OAuth2Error("this grant_type is not supported", error="unsupported_grant_type")
        if grant_type not in client.grant_types:
            raise OAuth2Error("this client is not registered for the grant_type", error="unauthorized_client")
        return await redeem(client, form, call)

    async def introspect(self, token: str) -> dict[str, Any]:
        """RFC 7662, section 2.2."""
        found = await self._tokens.IntrospectToken(token_mgr_pb2.IntrospectTokenRequest(token=token))
        if not found.active:
            return {"active": False}
        content = {
            "active": True,
            "scope": found.scope,
            "client_id": found.client_id,
            "token_type": "Bearer" if found.kind == "access_token" else "",
            "sub": found.user_id or found.client_id,
            "aud": list(found.audiences),
            "iss": found.issuer,
            "jti": found.jti,
            "sid": found.session_id,
            "exp": found.expire_time.seconds,
            "iat": found.issue_time.seconds,
            "act": {"sub": found.actor} if found.actor else None,
        }
        return {name: value for name, value in content.items() if value}

    async def revoke(self, client: Client, token: str) -> None:
        await self._tokens.RevokeToken(token_mgr_pb2.RevokeTokenRequest(token=token, client_id=client.client_id))

    async def start_device(self, client: Client, form: Form, call: RequestContext) -> dict[str, Any]:
        """RFC 8628, section 3.2. Raises OAuth2Error."""
        if clients.DEVICE_CODE not in client.grant_types:
            raise OAuth2Error("this client is not registered for devices", error="unauthorized_client")
        scope = _allowed(form.get("scope", ""), client.scopes)
        device_code = new_secret()
        while True:
            user_code = "".join(secrets.choice(_USER_CODE_LETTERS) for _ in range(_USER_CODE_LENGTH))
            device = await self._store.devices.insert_new(
                device_hash=hash_secret(device_code),
                user_code=user_code,
                grant_id=new_id(),
                client_id=client.client_id,
                scope=scope,
                poll_time=now(),
                poll_seconds=round(self._config.device_poll_interval.total_seconds()),
                expire_time=now() + self._config.device_code_lifetime,
            )
            if device is not None:
                break
        shown = f"{user_code[:4]}-{user_code[4:]}"
        page = f"{tenant_issuer(self._settings, call.tenant_id)}/oauth2/device"
        return {
            "device_code": device_code,
            "user_code": shown,
            "verification_uri": page,
            "verification_uri_complete": f"{page}?user_code={shown}",
            "expires_in": round(self._config.device_code_lifetime.total_seconds()),
            "interval": round(self._config.device_poll_interval.total_seconds()),
        }

    async def _redeem_code(self, client: Client, form: Form, call: RequestContext) -> dict[str, Any]:
        code = self._tickets.read(tickets.CODE, call.tenant_id, form.require("code"))
        if (
            code is None
            or code["client_id"] != client.client_id
            or code["redirect_uri"] != form.require("redirect_uri")
            or not verifies(form.require("code_verifier"), code["code_challenge"])
        ):
            raise OAuth2Error(_INVALID_GRANT, error="invalid_grant")
        expires = datetime.fromtimestamp(code["expires"], UTC)
        # A second use waits here for the first one to commit, and then finds the code spent.
        async with self._database.transaction():
            spent = await self._store.spent_codes.insert_new(code_id=code["grant_id"], expire_time=expires)
            if spent is not None:
                auth_time = datetime.fromtimestamp(code["auth_time"], UTC)
                answer = await self._grant(client, {**code, "auth_time": auth_time})
        if spent is None:
            # Somebody else has the code: nobody keeps what it gave (RFC 6749, section 4.1.2).
            await self._tokens.RevokeFamilies(token_mgr_pb2.RevokeFamiliesRequest(session_ids=[code["grant_id"]]))
            raise OAuth2Error(_INVALID_GRANT, error="invalid_grant")
        return answer

    async def _refresh(self, client: Client, form: Form, call: RequestContext) -> dict[str, Any]:
        token = form.require("refresh_token")
        try:
            grant = await self._tokens.InspectRefreshToken(
                token_mgr_pb2.InspectRefreshTokenRequest(refresh_token=token)
            )
            if grant.client_id != client.client_id:
                raise RefreshTokenInvalid()
            scope = _allowed(form.get("scope", ""), grant.scope.split()) if form.get("scope") else grant.scope
            await self._require_consent(client, grant.user_id, grant.scope)
            session = await self._accounts.touch(grant.parent_session_id) if grant.parent_session_id else Session()
            if session is None:
                raise RefreshTokenInvalid()
            user = await self._users.ResolveUser(ResolveUserRequest(user_id=grant.user_id))
            refreshed = await self._tokens.RefreshTokens(
                token_mgr_pb2.RefreshTokensRequest(
                    refresh_token=token,
                    client_id=client.client_id,
                    scope=scope,
                    permissions=held(scope.split(), user.permissions),
                    assurance=session.assurance,
                    methods=session.methods,
                )
            )
        except ScopeTooWide:
            raise OAuth2Error("the scope is more than was granted", error="invalid_scope") from None
        except (RefreshTokenInvalid, RefreshTokenReused, UserNotFound, UserDisabled):
            raise OAuth2Error(_INVALID_GRANT, error="invalid_grant") from None
        return await self._answer(client, refreshed.tokens, scope, user, session, grant.auth_time)

    async def _act_for_itself(self, client: Client, form: Form, call: RequestContext) -> dict[str, Any]:
        permitted = permissions_in(client.scopes)
        scope = _allowed(form.get("scope", ""), permitted)
        issued = await self._tokens.IssueGrant(
            token_mgr_pb2.IssueGrantRequest(
                grant_id=new_id(),
                client_id=client.client_id,
                scope=scope,
                permissions=scope.split(),
                audiences=client.audiences,
                expire_time=timestamp(now() + timedelta(seconds=self._settings.access_token_seconds)),
            )
        )
        return _tokens(issued.tokens, scope)

    async def _redeem_device(self, client: Client, form: Form, call: RequestContext) -> dict[str, Any]:
        device_hash = hash_secret(form.require("device_code"))
        refused = ""
        # The row stays locked, so that one question gets the tokens; what a refusal writes must commit.
        async with self._database.transaction():
            device = await self._store.devices.get(device_hash, lock=True)
            if device is None or device["client_id"] != client.client_id or device["state"] == "redeemed":
                refused = "invalid_grant"
            elif device["expire_time"] <= now():
                refused = "expired_token"
            elif device["state"] == "denied":
                refused = "access_denied"
            elif (early := device["poll_time"] > now()) or device["state"] == "pending":
                refused = "slow_down" if early else "authorization_pending"
                seconds = device["poll_seconds"] + (_SLOWER_SECONDS if early else 0)
                poll_time = now() + timedelta(seconds=seconds)
                await self._store.devices.change(device_hash, poll_seconds=seconds, poll_time=poll_time)
            else:
                await self._store.devices.change(device_hash, state="redeemed")
                answer = await self._grant(client, {**device, "nonce": ""})
        if refused:
            raise OAuth2Error(error=refused)
        return answer

    async def _exchange(self, client: Client, form: Form, call: RequestContext) -> dict[str, Any]:
        if form.require("subject_token_type") != ACCESS_TOKEN_TYPE:
            raise OAuth2Error("only access tokens are exchanged", error="invalid_request")
        if form.get("requested_token_type", ACCESS_TOKEN_TYPE) != ACCESS_TOKEN_TYPE or "actor_token" in form:
            raise OAuth2Error("only access tokens are issued, to the client itself", error="invalid_request")
        audiences = form.repeated.get("audience", [])
        if not set(audiences) <= set(client.audiences or [self._settings.token_audience]):
            raise OAuth2Error("the client is not registered for this audience", error="invalid_target")
        subject_token = form.require("subject_token")
        subject = await self._tokens.IntrospectToken(token_mgr_pb2.IntrospectTokenRequest(token=subject_token))
        if not subject.active:
            raise OAuth2Error("the subject token is not valid", error="invalid_request")
        carried = {*subject.scope.split(), *held(client.scopes, subject.permissions)}
        scope = _allowed(form.get("scope", ""), [name for name in client.scopes if name in carried])
        if not scope:
            raise OAuth2Error("the subject token carries no scope of this client", error="invalid_scope")
        try:
            exchanged = await self._tokens.ExchangeToken(
                token_mgr_pb2.ExchangeTokenRequest(
                    subject_token=subject_token,
                    actor=client.client_id,
                    audiences=audiences or client.audiences,
                    scope=scope,
                )
            )
        except SubjectTokenInvalid:
            raise OAuth2Error("the subject token is not valid", error="invalid_request") from None
        except PermissionNotHeld:
            raise OAuth2Error("the subject token does not carry the scope", error="invalid_scope") from None
        return {
            "access_token": exchanged.access_token,
            "issued_token_type": ACCESS_TOKEN_TYPE,
            "token_type": "Bearer",
            "expires_in": _seconds_until(moment(exchanged.expire_time)),
            "scope": exchanged.scope,
        }

    async def _grant(self, client: Client, allowed: Mapping[str, Any]) -> dict[str, Any]:
        """The first tokens of what a user has allowed, by a code or for a device.

        Raises OAuth2Error if the session, the user or the consent is gone.
        """
        user_id, session_id, scope = allowed["user_id"], allowed["session_id"], allowed["scope"]
        names = scope.split()
        await self._require_consent(client, user_id, scope)
        session = await self._accounts.touch(session_id)
        if session is None:
            raise OAuth2Error(_INVALID_GRANT, error="invalid_grant")
        offline, auth_time = "offline_access" in names, timestamp(allowed["auth_time"])
        try:
            user = await self._users.ResolveUser(ResolveUserRequest(user_id=user_id))
            issued = await self._tokens.IssueGrant(
                token_mgr_pb2.IssueGrantRequest(
                    grant_id=allowed["grant_id"],
                    client_id=client.client_id,
                    user_id=user_id,
                    parent_session_id="" if offline else session_id,
                    consent_session_id=session_id,
                    scope=scope,
                    permissions=held(names, user.permissions),
                    audiences=client.audiences,
                    expire_time=timestamp(now() + self._config.offline_lifetime) if offline else session.expire_time,
                    refreshable=clients.REFRESH_TOKEN in client.grant_types,
                    auth_time=auth_time,
                    assurance=session.assurance,
                    methods=session.methods,
                )
            )
        except (GrantExists, SessionEnded, UserNotFound, UserDisabled):
            raise OAuth2Error(_INVALID_GRANT, error="invalid_grant") from None
        return await self._answer(client, issued.tokens, scope, user, session, auth_time, allowed["nonce"])

    async def _require_consent(self, client: Client, user_id: str, scope: str) -> None:
        """Consent may have been taken back, and what a client is registered for may have shrunk, since."""
        if not set(scope.split()) <= set(client.scopes):
            raise OAuth2Error(_INVALID_GRANT, error="invalid_grant")
        consented = client.scopes if client.first_party else await self._store.consented(user_id, client.client_id)
        if not set(scope.split()) <= set(consented):
            raise OAuth2Error(_INVALID_GRANT, error="invalid_grant")

    async def _answer(
        self,
        client: Client,
        pair: token_mgr_pb2.TokenPair,
        scope: str,
        user: ResolveUserResponse,
        session: Session,
        auth_time: Timestamp,
        nonce: str = "",
    ) -> dict[str, Any]:
        """The tokens, with an ID token where the scope asks for one (OpenID Connect Core 1.0, section 3.1.3.3)."""
        answer = _tokens(pair, scope)
        names = scope.split()
        if "openid" in names:
            signed = await self._tokens.SignIdToken(
                token_mgr_pb2.SignIdTokenRequest(
                    client_id=client.client_id,
                    user_id=user.user.user_id,
                    algorithm=SigningAlgorithm.Value(f"SIGNING_ALGORITHM_{client.id_token_algorithm}"),
                    session_id=session.session_id,
                    acr=session.assurance,
                    amr=session.methods,
                    nonce=nonce,
                    auth_time=auth_time,
                    access_token=pair.access_token,
                    email=user.user.email if "email" in names else "",
                    email_verified=user.user.email_verified,
                    display_name=user.user.display_name if "profile" in names else "",
                )
            )
            answer["id_token"] = signed.id_token
        return answer


def _allowed(asked: str, allowed: Sequence[str]) -> str:
    """What is asked for, or all that is allowed. Raises OAuth2Error for more."""
    names = list(dict.fromkeys(asked.split())) or list(allowed)
    if not set(names) <= set(allowed):
        raise OAuth2Error("ask for scopes that the client is registered for", error="invalid_scope")
    return " ".join(names)


def _tokens(pair: token_mgr_pb2.TokenPair, scope: str) -> dict[str, Any]:
    """RFC 6749, section 5.1."""
    answer = {
        "access_token": pair.access_token,
        "token_type": "Bearer",
        "expires_in": _seconds_until(moment(pair.access_expire_time)),
        "scope": scope,
    }
    return answer | ({"refresh_token": pair.refresh_token} if pair.refresh_token else {})


def _seconds_until(expires: datetime) -> int:
    return max(0, round((expires - now()).total_seconds()))
