"""FastAPI + uvicorn (uvloop, httptools) + asyncpg, doing what the benchmarks `read` and `write` ask of us.

Verified tokens are remembered for a minute, as ours are, and the keys are read once a minute.
"""

import hashlib
import json
import os
import time
import uuid
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Annotated, Any

import asyncpg
import httpx
from fastapi import Depends, FastAPI, Header, HTTPException
from joserfc import jwt
from joserfc.errors import JoseError
from joserfc.jwk import KeySet
from pydantic import BaseModel, Field

PUBLISHES = os.environ["PEER_PUBLISHES"] == "1"
KEYS_FRESH_SECONDS = REMEMBER_SECONDS = 60.0
COLUMNS = """client_id::text, client_name, authentication, redirect_uris, post_logout_redirect_uris, grant_types,
    scopes, audiences, first_party, create_time"""
CLAIMS = jwt.JWTClaimsRegistry(
    iss={"essential": True, "value": os.environ["PEER_ISSUER"]},
    aud={"essential": True, "value": os.environ["PEER_AUDIENCE"]},
    sub={"essential": True},
    tid={"essential": True},
    exp={"essential": True},
)


class Settings(BaseModel):
    clientName: str = Field(min_length=1, max_length=200)  # noqa: N815  as the contract's JSON has it
    redirectUris: list[str] = Field(max_length=50)  # noqa: N815
    scopes: list[str] = Field(default=[], max_length=200)


class CreateClient(BaseModel):
    settings: Settings
    requestId: str = Field(max_length=128)  # noqa: N815


class State:
    pool: asyncpg.Pool
    keys: KeySet
    keys_read = float("-inf")
    remembered: dict[str, tuple[dict[str, Any], float]]


@asynccontextmanager
async def lifespan(_: FastAPI) -> AsyncIterator[None]:
    State.pool = await asyncpg.create_pool(os.environ["PEER_DATABASE_URL"], min_size=8, max_size=8)
    State.remembered = {}
    yield
    await State.pool.close()


app = FastAPI(lifespan=lifespan)


async def signed_in(authorization: Annotated[str, Header()] = "") -> dict[str, Any]:
    token = authorization.removeprefix("Bearer ")
    known = State.remembered.get(token)
    if known is not None and known[1] > time.time():
        return known[0]
    try:
        if time.monotonic() - State.keys_read > KEYS_FRESH_SECONDS:
            async with httpx.AsyncClient() as client:
                State.keys = KeySet.import_key_set((await client.get(os.environ["PEER_JWKS_URL"])).json())
            State.keys_read = time.monotonic()
        claims = jwt.decode(token, State.keys, algorithms=["ES256"]).claims
        CLAIMS.validate(claims)
    except (JoseError, ValueError) as error:
        raise HTTPException(401, "the token is not valid") from error
    if len(State.remembered) > 20_000:
        State.remembered.clear()
    State.remembered[token] = claims, min(claims["exp"], time.time() + REMEMBER_SECONDS)
    return claims


User = Annotated[dict[str, Any], Depends(signed_in)]


def require(user: dict[str, Any], permission: str) -> None:
    if permission not in user["permissions"] and "*" not in user["permissions"]:
        raise HTTPException(403, f"this needs {permission}")


def as_json(row: asyncpg.Record) -> dict[str, Any]:
    return {
        "clientId": row["client_id"],
        "settings": {
            "clientName": row["client_name"],
            "redirectUris": row["redirect_uris"],
            "postLogoutRedirectUris": row["post_logout_redirect_uris"],
            "grantTypes": row["grant_types"],
            "scopes": row["scopes"],
            "audiences": row["audiences"],
            "firstParty": row["first_party"],
        },
        "authentication": row["authentication"],
        "createTime": row["create_time"].isoformat(),
    }


@app.get("/api/v1/clients/{client_id}")
async def get_client(client_id: uuid.UUID, user: User) -> dict[str, Any]:
    require(user, "clients.read")
    row = await State.pool.fetchrow(
        f"SELECT {COLUMNS} FROM bench_peer.clients WHERE client_id = $1 AND tenant_id = $2", client_id, user["tid"]
    )
    if row is None:
        raise HTTPException(404, "there is no such client")
    return {"client": as_json(row)}


@app.post("/api/v1/clients")
async def create_client(body: CreateClient, user: User) -> dict[str, Any]:
    require(user, "clients.manage")
    tenant, scope = user["tid"], f"CreateClient {user['sub']}"
    request_hash = hashlib.sha256(body.model_dump_json().encode()).digest()
    async with State.pool.acquire() as connection, connection.transaction():
        first = await connection.fetchval(
            "INSERT INTO bench_peer.idempotency_keys (tenant_id, scope, key, request_hash) VALUES ($1, $2, $3, $4) "
            "ON CONFLICT DO NOTHING RETURNING true",
            tenant,
            scope,
            body.requestId,
            request_hash,
        )
        if not first:
            stored = await connection.fetchrow(
                "SELECT request_hash, response FROM bench_peer.idempotency_keys "
                "WHERE tenant_id = $1 AND scope = $2 AND key = $3",
                tenant,
                scope,
                body.requestId,
            )
            if stored["request_hash"] != request_hash:
                raise HTTPException(409, "the key was used with another request")
            answer: dict[str, Any] = json.loads(stored["response"])
            return answer
        row = await connection.fetchrow(
            "INSERT INTO bench_peer.clients (tenant_id, client_id, client_name, authentication, redirect_uris, "
            "post_logout_redirect_uris, grant_types, scopes, audiences, first_party) "
            f"VALUES ($1, $2, $3, 'none', $4, '{{}}', $5, $6, '{{}}', false) RETURNING {COLUMNS}",
            tenant,
            uuid.uuid4(),
            body.settings.clientName,
            body.settings.redirectUris,
            ["authorization_code", "refresh_token"],
            body.settings.scopes,
        )
        answer = {"client": as_json(row)}
        serialized = json.dumps(answer)
        if PUBLISHES:
            await connection.execute(
                "INSERT INTO bench_peer.events (event_id, tenant_id, type, aggregate, payload) "
                "VALUES ($1, $2, 'ClientCreated', $3, $4)",
                uuid.uuid4(),
                tenant,
                row["client_id"],
                serialized,
            )
        await connection.execute(
            "UPDATE bench_peer.idempotency_keys SET response = $4 WHERE tenant_id = $1 AND scope = $2 AND key = $3",
            tenant,
            scope,
            body.requestId,
            serialized,
        )
        return answer
