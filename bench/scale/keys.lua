-- wrk's script: POST with an Idempotency-Key. Arguments: a prefix, "fresh" or "same", the body.
-- A fresh key comes with a body of its own: its last x is a number.

local count, prefix, fresh, body = 0, "", false, ""

function init(arguments)
  prefix, fresh, body = arguments[1], arguments[2] == "fresh", arguments[3]
end

function request()
  if fresh then count = count + 1 end
  local headers = { ["Content-Type"] = "application/json", ["Idempotency-Key"] = prefix .. "-" .. count }
  return wrk.format("POST", nil, headers, (body:gsub("xxxxxxxxx\"", string.format("%09d\"", count), 1)))
end
