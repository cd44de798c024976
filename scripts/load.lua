-- wrk: one post per request, every text another one, so that the answer cache does not help. Counts by status.
-- KEY in the environment is sent as a bearer token, LANE as the lane.
local places = {"东门小区", "河西路", "第三小学", "体育馆", "二号线车站", "人民公园", "老菜市场", "行政大厅"}
local things = {"停水", "路灯不亮", "垃圾没人清", "噪音扰民", "电梯坏了", "乱停车", "积水很深", "井盖缺失"}
local ends = {"打电话一直没人接，请尽快处理", "已经三天了还没有人管", "希望有关部门给个说法", "老人孩子都很不方便", "建议尽快安排人来看看"}
local headers = {["content-type"] = "application/json"}
if os.getenv("KEY") then headers["authorization"] = "Bearer " .. os.getenv("KEY") end
if os.getenv("LANE") then headers["x-triage-lane"] = os.getenv("LANE") end

local threads, n = {}, 0

function setup(thread)
  table.insert(threads, thread)
  thread:set("id", #threads)
end

function init()
  math.randomseed(os.time() * 100 + id)
  ok, busy, other = 0, 0, 0
end

local function any(list) return list[math.random(#list)] end

function request()
  n = n + 1
  local text = string.format("%s%d栋附近%s，%s。编号%d-%d。", any(places), math.random(999), any(things), any(ends), id, n)
  return wrk.format("POST", "/v1/classify", headers, '{"items":[{"id":"a","text":"' .. text .. '"}]}')
end

function response(status)
  if status == 200 then ok = ok + 1 elseif status == 503 then busy = busy + 1 else other = other + 1 end
end

function done(summary, latency)
  local sum = {ok = 0, busy = 0, other = 0}
  for _, thread in ipairs(threads) do
    for name in pairs(sum) do sum[name] = sum[name] + thread:get(name) end
  end
  local e = summary.errors
  io.write(string.format(
    "RESULT ok=%d refused=%d other=%d socket_errors=%d timeouts=%d ok_per_s=%.0f p50_ms=%.1f p95_ms=%.1f p99_ms=%.1f max_ms=%.1f\n",
    sum.ok, sum.busy, sum.other, e.connect + e.read + e.write, e.timeout, sum.ok / (summary.duration / 1e6),
    latency:percentile(50) / 1e3, latency:percentile(95) / 1e3, latency:percentile(99) / 1e3, latency.max / 1e3))
end
