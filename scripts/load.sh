#!/usr/bin/env bash
# Load on a running service of this machine, bounded in time: wrk (from your distribution) with scripts/load.lua.
#
#     scripts/load.sh steps    [seconds]   1, 16, 64 and 256 connections, one post per request
#     scripts/load.sh overload [seconds]   more than may wait: refusals must be quick, and it must recover
#     scripts/load.sh soak     [seconds]   16 connections, resident memory before and after (PID=… of the service)
#     scripts/load.sh lanes    [seconds]   8 connections of people, alone and beside 64 of a job in the lane `bulk`
#
# URL is the service's address (http://127.0.0.1:8080), KEY a key when it has keys.
set -euo pipefail
here="$(cd "$(dirname "$0")" && pwd)"
url="${URL:-http://127.0.0.1:8080}"
case "$url" in
http://127.0.0.1:* | http://localhost:*) ;;
*) echo "load is for this machine only; $url is another one" >&2 && exit 2 ;;
esac
seconds="${2:-10}"

load() { # connections
    wrk -t "$(($1 < 2 ? 1 : 2))" -c "$1" -d "${seconds}s" --timeout 10s -s "$here/load.lua" "$url" | grep RESULT |
        sed "s/^RESULT/connections=$1/"
}
counted() {
    curl -sf ${KEY:+-H "authorization: Bearer $KEY"} "$url/metrics" |
        grep -E '^triage_(items(_received)?_total|worker_panics_total|cache_hits_total|ready) ?' || true
}

case "${1:-}" in
steps) for connections in 1 16 64 256; do load "$connections"; done ;;
overload)
    load 2048
    sleep 1
    curl -s -o /dev/null -w 'readiness a second later: %{http_code}\n' "$url/readyz"
    load 1
    ;;
soak)
    rss() { awk '/VmRSS/ {print $2 " kB"}' "/proc/${PID:?give the PID of the service}/status"; }
    echo "resident before: $(rss)"
    load 16
    echo "resident after: $(rss)"
    ;;
lanes)
    echo "people alone:" && load 8
    LANE=bulk load 64 > /dev/null &
    echo "people beside a job:" && load 8
    wait
    ;;
*) sed -n '2,10p' "$0" && exit 2 ;;
esac
counted
