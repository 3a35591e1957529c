-- Finds what the transcoder would misread in silence: fields that the message does not have or that come twice, text
-- that is almost JSON (its parser takes single quotes, bare names and trailing commas), deep nesting. Whether a value
-- fits its field is left to the transcoder.
-- Prepended: MESSAGES, message → field → message of the field, or true.

local MAX_DEPTH = 64
local QUOTE, COMMA, COLON, BACKSLASH = 34, 44, 58, 92
local OPEN_LIST, CLOSE_LIST, OPEN_OBJECT, CLOSE_OBJECT = 91, 93, 123, 125
local WORDS = { ["true"] = true, ["false"] = true, ["null"] = true }
local NUMBER_ENDS = { "^$", "^%.%d+$", "^[eE][+-]?%d+$", "^%.%d+[eE][+-]?%d+$" }

-- The end of the string that starts at `start` (its opening quote), or nil.
local function string_end(text, start)
  local at = start + 1
  while true do
    at = text:find('[%z\1-\31"\\]', at)
    if not at then return nil end
    local c = text:byte(at)
    if c == QUOTE then return at end
    if c ~= BACKSLASH then return nil end
    if not (text:find('^["\\/bfnrt]', at + 1) or text:find("^u%x%x%x%x", at + 1)) then return nil end
    at = at + 2
  end
end

-- The end of the number, true, false or null that starts here, or nil.
local function word_end(text, at)
  local word = text:match("^[%w.+-]+", at)
  if not word then return nil end
  local stop = at + #word - 1
  if WORDS[word] then return stop end
  if word:find("^-?[1-9]%d*$") then return stop end
  local whole, rest = word:match("^-?(%d+)(.*)$")
  if not whole or (#whole > 1 and whole:byte(1) == 48) then return nil end
  for _, ending in ipairs(NUMBER_ENDS) do
    if rest:find(ending) then return stop end
  end
  return nil
end

-- A name as it is meant: its escaped ASCII characters written out.
local function plain(name)
  if not name:find("\\", 1, true) then return name end
  return (name:gsub("\\(.)(%x?%x?%x?%x?)", function(kind, hex)
    local c = kind == "u" and tonumber(hex, 16)
    return c and c < 128 and string.char(c) or nil
  end))
end

-- Enters the field of this name. Returns the message of its value, or nil and what is wrong.
local function enter(container, name)
  local fields = container.fields
  local value = true
  if fields then
    value = fields["*"] or fields[name]
    if not value then
      return nil, 'there is no field "' .. name:sub(1, 64) .. '" in ' .. container.message
    end
    if not fields["*"] then name = name:gsub("_(.?)", string.upper) end
  end
  container.seen = container.seen or {}
  if container.seen[name] then return nil, 'it has "' .. name:sub(1, 64) .. '" twice' end
  container.seen[name] = true
  return value
end

-- What is wrong with a JSON text for a message, or nil.
local function check(text, message)
  local stack, depth, container = {}, 0, nil
  local expected, wants, at = message, "value", 1
  while true do
    local c = text:byte(at)
    while c == 32 or c == 10 or c == 13 or c == 9 do
      at = at + 1
      c = text:byte(at)
    end
    if not c then return wants ~= "end" and "it ends too early" or nil end
    local takes_value = wants == "value" or wants == "first value"
    local stop = at
    if c == QUOTE then
      stop = string_end(text, at)
      if stop and (wants == "name" or wants == "first name") then
        local problem
        expected, problem = enter(container, plain(text:sub(at + 1, stop - 1)))
        if problem then return problem end
        wants = "colon"
      elseif takes_value then
        wants = container and "next" or "end"
      else
        stop = nil
      end
    elseif c == OPEN_OBJECT or c == OPEN_LIST then
      if takes_value then
        depth = depth + 1
        if depth > MAX_DEPTH then return "it is nested more than " .. MAX_DEPTH .. " levels deep" end
        container = stack[depth] or {}
        stack[depth] = container
        container.closes = c + 2
        container.message = expected
        container.fields = c == OPEN_OBJECT and MESSAGES[expected] or nil
        container.seen = nil
        wants = c == OPEN_OBJECT and "first name" or "first value"
      else
        stop = nil
      end
    elseif c == CLOSE_OBJECT or c == CLOSE_LIST then
      if container and c == container.closes and (wants == "next" or wants == "first name" or wants == "first value") then
        depth = depth - 1
        container = stack[depth]
        wants = container and "next" or "end"
      else
        stop = nil
      end
    elseif c == COLON and wants == "colon" then
      wants = "value"
    elseif c == COMMA and wants == "next" then
      expected = container.message
      wants = container.closes == CLOSE_OBJECT and "name" or "value"
    elseif takes_value then
      stop = word_end(text, at)
      wants = container and "next" or "end"
    else
      stop = nil
    end
    if not stop then return "it is not JSON from byte " .. at .. " on" end
    at = stop + 1
  end
end
