-- Refuses JSON bodies that the transcoder would misread in silence: unknown fields, other media types, deep
-- nesting. Whether the text is valid JSON is left to the transcoder, which parses it anyway.
-- MESSAGES is prepended: message → field → message of the field, or true.

local MAX_DEPTH = 64

local function refuse(handle, status, reason, message)
  local quoted = message:gsub('[%c"\\]', function(c) return string.format("\\u%04x", c:byte()) end)
  handle:respond(
    { [":status"] = tostring(status), ["content-type"] = "application/json" },
    string.format(
      '{"code":3,"message":"%s","details":[{"@type":"type.googleapis.com/google.rpc.ErrorInfo",' ..
      '"reason":"%s","domain":"nexus","metadata":{}}]}', quoted, reason))
end

-- The end of the string that starts at `start` (its opening quote), or nil.
local function string_end(text, start)
  local at = start + 1
  while true do
    at = text:find('[\\"]', at)
    if not at then return nil end
    if text:byte(at) == 34 then return at end
    at = at + 2
  end
end

-- What is wrong with the fields of a JSON text for a message, or nil.
function check(text, message)
  local stack = {}
  local depth = 0
  local container = nil
  local expected = message
  local at = 1
  while true do
    at = text:find('["{}%[%],]', at)
    if not at then return nil end
    local c = text:byte(at)
    if c == 34 then -- "
      local stop = string_end(text, at)
      if not stop then return nil end
      if container and container.is_object and container.at_key then
        container.at_key = false
        local fields = container.fields
        if fields then
          local name = text:sub(at + 1, stop - 1)
          local field = fields["*"] or fields[name]
          if not field then
            return 'there is no field "' .. name:sub(1, 64) .. '" in ' .. container.message
          end
          expected = field
        else
          expected = nil
        end
      end
      at = stop
    elseif c == 123 or c == 91 then -- { [
      depth = depth + 1
      if depth > MAX_DEPTH then return "it is nested more than " .. MAX_DEPTH .. " levels deep" end
      local known = type(expected) == "string" and expected or nil
      container = {
        is_object = c == 123,
        at_key = c == 123,
        message = known,
        fields = c == 123 and known and MESSAGES[known] or nil,
        expected = expected,
      }
      stack[depth] = container
    elseif c == 125 or c == 93 then -- } ]
      if depth == 0 then return nil end
      stack[depth] = nil
      depth = depth - 1
      container = stack[depth]
      if container and not container.is_object then expected = container.expected end
    elseif container then -- ,
      if container.is_object then container.at_key = true else expected = container.expected end
    end
    at = at + 1
  end
end

function envoy_on_request(handle)
  local form = handle:metadata():get("body")
  if not form or form == "any" then return end
  local headers = handle:headers()
  local kind = headers:get("content-type")
  if kind and kind:find("^application/grpc") then return end
  local body = handle:body()
  local length = body and body:length() or 0
  if length == 0 then return end
  if form == "none" then
    return refuse(handle, 400, "MALFORMED_REQUEST", "The request cannot be read: this method takes no body.")
  end
  if kind and not kind:lower():find("^application/json") then
    return refuse(handle, 415, "MEDIA_TYPE_UNSUPPORTED", "Send application/json.")
  end
  local problem = check(body:getBytes(0, length), handle:metadata():get("message"))
  if problem then
    return refuse(handle, 400, "MALFORMED_REQUEST", "The request cannot be read: " .. problem .. ".")
  end
end
