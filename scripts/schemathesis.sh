#!/usr/bin/env bash
# Requests made from the contract, right and wrong ones, against a running service: is the contract true?
#
#     pip install -r scripts/requirements-schemathesis.txt
#     target/release/triage serve &
#     scripts/schemathesis.sh [http://127.0.0.1:8080] [more arguments for schemathesis]
set -euo pipefail
here="$(cd "$(dirname "$0")" && pwd)"
url="${1:-http://127.0.0.1:8080}"
shift || true
exec schemathesis --config-file "$here/schemathesis.toml" run "$url/openapi.json" \
    --phases examples,coverage,fuzzing --max-examples "${EXAMPLES:-50}" --seed 1 \
    --generation-database none --request-timeout 20 --continue-on-failure "$@"
