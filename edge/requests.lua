-- The first to see a request that is no gRPC call: says what no method is for, what a body may not hold, and which
-- headers cannot be gRPC metadata, before the transcoder takes a path that only looks like one of its own.
-- Prepended: the answers that are the same each time (ROUTE_UNKNOWN, METHOD_NOT_ALLOWED, HEALTHY, NOT_GRPC), then
-- paths.lua and strict_json.lua.

local JSON = "application/json"

local function answer(handle, status, body, allow)
  handle:respond({ [":status"] = tostring(status), ["content-type"] = JSON, ["allow"] = allow }, body)
end

local function refuse(handle, status, reason, message)
  local quoted = message:gsub("[^\32-\126]", "?"):gsub('["\\]', "\\%0")
  answer(
    handle, status,
    string.format(
      '{"code":3,"message":"%s","details":[{"@type":"type.googleapis.com/google.rpc.ErrorInfo",' ..
      '"reason":"%s","domain":"nexus","metadata":{}}]}', quoted, reason))
end

-- Takes away the headers that gRPC has no place for: a service refuses a call for the sake of one of them.
local function drop_unfit(headers)
  local unfit = {}
  for name in pairs(headers) do
    if name:find("[^%l%d_.:-]") or name:find("^grpc%-") or name:find("%-bin$") then unfit[#unfit + 1] = name end
  end
  for _, name in ipairs(unfit) do headers:remove(name) end
end

local function allowed(leaf)
  local verbs = {}
  for verb in pairs(leaf) do verbs[#verbs + 1] = verb end
  table.sort(verbs)
  return table.concat(verbs, ", ")
end

local function has_body(handle)
  local body = handle:body() -- waits for it; what was read off the handle before is gone then
  return body and body:length() > 0 and body or nil
end

function envoy_on_request(handle)
  if not handle:metadata():get("http") then return end -- the route of a gRPC method
  local headers = handle:headers()
  local kind = (headers:get("content-type") or JSON):lower():match("^[^;%s]*")
  if kind:find("^application/grpc") then
    return handle:respond({
      [":status"] = "200", ["content-type"] = "application/grpc", ["grpc-status"] = "12",
      ["grpc-message"] = "This path is not a gRPC method's.", ["grpc-status-details-bin"] = NOT_GRPC })
  end
  local path = headers:get(":path")
  if path == "/healthz" then return answer(handle, 200, HEALTHY) end
  local leaf = find(ROUTES, segments_of(path), 1)
  if not leaf then return answer(handle, 404, ROUTE_UNKNOWN) end
  local form = leaf[headers:get(":method")]
  if not form then return answer(handle, 405, METHOD_NOT_ALLOWED, allowed(leaf)) end
  drop_unfit(headers)
  if form.body == "any" then return end
  local encoding = (headers:get("content-encoding") or "identity"):lower()
  local body = has_body(handle)
  if not body then return end
  if form.body == "none" then
    return refuse(handle, 400, "MALFORMED_REQUEST", "The request cannot be read: this method takes no body.")
  end
  if kind ~= JSON then return refuse(handle, 415, "MEDIA_TYPE_UNSUPPORTED", "Send application/json.") end
  if encoding ~= "identity" then
    return refuse(handle, 415, "MEDIA_TYPE_UNSUPPORTED", "Send the body as it is, without a content-encoding.")
  end
  local problem = check(body:getBytes(0, body:length()), form.message)
  if problem then
    return refuse(handle, 400, "MALFORMED_REQUEST", "The request cannot be read: " .. problem .. ".")
  end
end

-- Methods that answer as HTTP standards have it say their status in a header; of others it is not believed.
-- What may be kept says so, if it is good.
function envoy_on_response(handle)
  local headers = handle:headers()
  local lasts = handle:metadata():get("cache_control")
  if lasts and headers:get(":status") == "200" then
    headers:replace("cache-control", lasts)
  end
  local status = headers:get("x-http-status")
  if not status then return end
  headers:remove("x-http-status")
  if status:find("^[2-5]%d%d$") and headers:get(":status") == "200" then headers:replace(":status", status) end
end
