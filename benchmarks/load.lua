-- Sends the requests of a file over and over and prints what came of it. Arguments: the file that workload.py writes, and
-- after how many requests to fall silent, where it is not to go on until the time is up.

local requests = {}
local turn = 0

function init(arguments)
  for line in io.lines(arguments[1]) do
    local method, path, token, tag, body = line:match("^(.-)\t(.-)\t(.-)\t(.-)\t(.*)$")
    local headers = { ["Authorization"] = "Bearer " .. token }
    if tag ~= "" then
      headers["If-None-Match"] = tag
    end
    if body == "" then
      body = nil
    else
      headers["Content-Type"] = "application/json"
    end
    requests[#requests + 1] = wrk.format(method, path, headers, body)
  end
  if arguments[2] then
    local limit = tonumber(arguments[2])
    -- wrk asks before each request how many milliseconds to wait.
    function delay()
      limit = limit - 1
      return limit < 0 and 3600000 or 0
    end
  end
end

function request()
  turn = turn % #requests + 1
  return requests[turn]
end

function done(summary, latency)
  local errors = summary.errors
  io.write(string.format(
    '\n{"requests": %d, "seconds": %f, "p50": %f, "p99": %f, "slowest": %f, "refused": %d, "broken": %d, "bytes": %d}\n',
    summary.requests, summary.duration / 1e6, latency:percentile(50) / 1e3, latency:percentile(99) / 1e3, latency.max / 1e3,
    errors.status, errors.connect + errors.read + errors.write + errors.timeout, summary.bytes
  ))
end
