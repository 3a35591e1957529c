// Express + pg, doing what the benchmarks `read` and `write` ask of us: the peer of `read-node`.
//
// Verified tokens are remembered for a minute, as ours are; jose keeps the keys.
import cluster from "node:cluster";
import { createHash, randomUUID } from "node:crypto";
import express from "express";
import { createRemoteJWKSet, jwtVerify } from "jose";
import pg from "pg";

const env = process.env;
const workers = Number(env.PEER_WORKERS);
const REMEMBER_MS = 60_000;
const COLUMNS = `client_id, client_name, authentication, redirect_uris, post_logout_redirect_uris, grant_types, scopes,
  audiences, first_party, create_time`;

if (cluster.isPrimary && workers > 1) {
  for (let n = 0; n < workers; n++) cluster.fork();
} else {
  serve();
}

function serve() {
  const pool = new pg.Pool({ connectionString: env.PEER_DATABASE_URL, max: 8 });
  const keys = createRemoteJWKSet(new URL(env.PEER_JWKS_URL), { cacheMaxAge: REMEMBER_MS });
  const remembered = new Map();
  const app = express();
  app.disable("x-powered-by");
  app.set("etag", false);
  app.use(express.json({ limit: "100kb" }));

  app.use(async (request, response, next) => {
    const token = (request.headers.authorization ?? "").replace(/^Bearer /, "");
    const known = remembered.get(token);
    if (known && known.until > Date.now()) {
      request.user = known.claims;
      return next();
    }
    try {
      const { payload } = await jwtVerify(token, keys, {
        issuer: env.PEER_ISSUER,
        audience: env.PEER_AUDIENCE,
        algorithms: ["ES256"],
        requiredClaims: ["sub", "tid", "exp"],
      });
      if (remembered.size > 20_000) remembered.clear();
      remembered.set(token, { claims: payload, until: Math.min(payload.exp * 1000, Date.now() + REMEMBER_MS) });
      request.user = payload;
      next();
    } catch {
      response.status(401).json({ message: "the token is not valid" });
    }
  });

  const may = (permission) => (request, response, next) =>
    request.user.permissions.includes(permission) || request.user.permissions.includes("*")
      ? next()
      : response.status(403).json({ message: `this needs ${permission}` });

  app.get("/api/v1/clients/:clientId", may("clients.read"), async (request, response) => {
    const { rows } = await pool.query({
      name: "get-client",
      text: `SELECT ${COLUMNS} FROM bench_peer.clients WHERE client_id = $1 AND tenant_id = $2`,
      values: [request.params.clientId, request.user.tid],
    });
    if (!rows.length) return response.status(404).json({ message: "there is no such client" });
    response.json({ client: asJson(rows[0]) });
  });

  app.post("/api/v1/clients", may("clients.manage"), async (request, response) => {
    const { settings, requestId } = request.body;
    if (typeof settings?.clientName !== "string" || !settings.clientName || typeof requestId !== "string") {
      return response.status(400).json({ message: "a name and a request id, please" });
    }
    const key = [request.user.tid, `CreateClient ${request.user.sub}`, requestId];
    const hash = createHash("sha256").update(JSON.stringify(request.body)).digest();
    const connection = await pool.connect();
    try {
      await connection.query("BEGIN");
      const claimed = await connection.query({
        name: "claim",
        text: `INSERT INTO bench_peer.idempotency_keys (tenant_id, scope, key, request_hash) VALUES ($1, $2, $3, $4)
               ON CONFLICT DO NOTHING RETURNING true`,
        values: [...key, hash],
      });
      if (!claimed.rows.length) {
        const { rows } = await connection.query({
          name: "stored",
          text: `SELECT request_hash, response FROM bench_peer.idempotency_keys
                 WHERE tenant_id = $1 AND scope = $2 AND key = $3`,
          values: key,
        });
        await connection.query("COMMIT");
        return hash.equals(rows[0].request_hash)
          ? response.type("json").send(rows[0].response)
          : response.status(409).json({ message: "the key was used with another request" });
      }
      const inserted = await connection.query({
        name: "insert",
        text: `INSERT INTO bench_peer.clients (tenant_id, client_id, client_name, authentication, redirect_uris,
                 post_logout_redirect_uris, grant_types, scopes, audiences, first_party)
               VALUES ($1, $2, $3, 'none', $4, '{}', $5, $6, '{}', false) RETURNING ${COLUMNS}`,
        values: [
          request.user.tid,
          randomUUID(),
          settings.clientName,
          settings.redirectUris ?? [],
          ["authorization_code", "refresh_token"],
          settings.scopes ?? [],
        ],
      });
      const answer = JSON.stringify({ client: asJson(inserted.rows[0]) });
      if (env.PEER_PUBLISHES === "1") {
        await connection.query({
          name: "publish",
          text: `INSERT INTO bench_peer.events (event_id, tenant_id, type, aggregate, payload)
                 VALUES ($1, $2, 'ClientCreated', $3, $4)`,
          values: [randomUUID(), request.user.tid, inserted.rows[0].client_id, answer],
        });
      }
      await connection.query({
        name: "answer",
        text: "UPDATE bench_peer.idempotency_keys SET response = $4 WHERE tenant_id = $1 AND scope = $2 AND key = $3",
        values: [...key, answer],
      });
      await connection.query("COMMIT");
      response.type("json").send(answer);
    } catch (error) {
      await connection.query("ROLLBACK");
      throw error;
    } finally {
      connection.release();
    }
  });

  app.listen(Number(env.PEER_PORT), "127.0.0.1");
}

function asJson(row) {
  return {
    clientId: row.client_id,
    settings: {
      clientName: row.client_name,
      redirectUris: row.redirect_uris,
      postLogoutRedirectUris: row.post_logout_redirect_uris,
      grantTypes: row.grant_types,
      scopes: row.scopes,
      audiences: row.audiences,
      firstParty: row.first_party,
    },
    authentication: row.authentication,
    createTime: row.create_time.toISOString(),
  };
}
