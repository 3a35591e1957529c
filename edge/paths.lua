-- Which method an HTTP path is for. ROUTES is prepended: the tree of all path templates. A node has `named` children
-- by segment, `any` for a variable, `rest` for a variable that takes all that follows, and a `leaf` where a template
-- ends: by HTTP method, what its body may be. A custom verb (":revoke") is a last segment of its own, "/revoke".

-- The segments of a path without its query, or nil.
local function segments_of(path)
  local segments = {}
  for segment in path:match("^[^?]*"):gmatch("/([^/]*)") do segments[#segments + 1] = segment end
  local name, verb = (segments[#segments] or ""):match("^([^:]+):([^:]+)$")
  if name then
    segments[#segments] = name
    segments[#segments + 1] = "/" .. verb
  end
  return segments
end

-- The leaf where the segments from `at` on lead, or nil. What is said in full goes before a variable.
local function find(node, segments, at)
  local segment = segments[at]
  if not segment then return node.leaf end
  local child = node.named and node.named[segment]
  local found = child and find(child, segments, at + 1)
  if found then return found end
  if segment == "" or segment:byte(1) == 47 then return nil end
  if node.any and not segment:find(":", 1, true) then found = find(node.any, segments, at + 1) end
  if found or not node.rest then return found end
  local verb = node.rest.named and at < #segments and node.rest.named[segments[#segments]]
  return verb and verb.leaf or node.rest.leaf
end
