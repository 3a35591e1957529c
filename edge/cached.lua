-- The cache keeps an answer by host and path. All our answers are those of one tenant, and none depends on the host, so
-- the tenant takes its place. What goes on to `origin` is the very tenant that the answer is kept for.
function envoy_on_request(handle)
  local headers = handle:headers()
  local tenant = (headers:get("x-nexus-tenant") or ""):match("^[a-z0-9][a-z0-9-]*$")
  if tenant then
    headers:replace("x-nexus-tenant", tenant)
  else
    headers:remove("x-nexus-tenant")
  end
  headers:replace(":authority", tenant or "nobody.invalid")
end
