#!/usr/bin/env bash
# The real Label Studio against the real `milseg serve`: its predictions must be our masks, pixel for pixel.
#
#   tests/label_studio/run.sh MODEL PHOTOS [--picture FILE]
#
# Installs Label Studio into an environment of its own (LABEL_STUDIO_VENV keeps it for the next time), starts both on
# loopback with data in a temporary folder, runs check.py, and stops them. Ten minutes where Label Studio must first
# be installed and make its database.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
root=$(cd "$here/../.." && pwd)
model=$1 photos=$2
shift 2

work=$(mktemp -d)
started=()
stop() {
    for pid in "${started[@]}"; do kill "$pid" 2>/dev/null || true; done
    for pid in "${started[@]}"; do wait "$pid" 2>/dev/null || true; done
    rm -rf "$work"
}
trap stop EXIT

venv=${LABEL_STUDIO_VENV:-$work/venv}
if [ ! -x "$venv/bin/label-studio" ]; then
    python3 -m venv "$venv"
    "$venv/bin/pip" install --quiet label-studio
fi

free_port() { python3 -c 'import socket; s = socket.socket(); s.bind(("127.0.0.1", 0)); print(s.getsockname()[1])'; }
studio_port=$(free_port)
backend_port=$(free_port)
token=$(python3 -c 'import secrets; print(secrets.token_hex(20))')
(umask 077 && echo "$token" >"$work/token")

# Label Studio refuses backends on its own machine unless told otherwise, and old-style tokens are off by default.
LABEL_STUDIO_BASE_DATA_DIR="$work/data" LABEL_STUDIO_ENABLE_LEGACY_API_TOKEN=true \
    USE_DEFAULT_BANNED_SUBNETS=false USER_ADDITIONAL_BANNED_SUBNETS=169.254.0.0/16 \
    COLLECT_ANALYTICS=false LATEST_VERSION_CHECK=false SENTRY_DSN='' FRONTEND_SENTRY_DSN='' \
    "$venv/bin/label-studio" start --no-browser --internal-host 127.0.0.1 --port "$studio_port" \
    --username check@example.com --password "$token" --user-token "$token" >"$work/studio.log" 2>&1 &
started+=($!)
"$root/.venv/bin/milseg" serve --model "$model" --port "$backend_port" \
    --label-studio-url "http://127.0.0.1:$studio_port" --label-studio-token-file "$work/token" \
    >"$work/backend.log" 2>&1 &
started+=($!)

for address in "http://127.0.0.1:$studio_port/health" "http://127.0.0.1:$backend_port/ready"; do
    for _ in $(seq 900); do
        curl -sf -o /dev/null "$address" && continue 2
        sleep 1
    done
    echo "$address does not answer" >&2
    tail -n 20 "$work"/*.log >&2
    exit 1
done

"$root/.venv/bin/python" "$here/check.py" --label-studio "http://127.0.0.1:$studio_port" --token-file "$work/token" \
    --email check@example.com --backend "http://127.0.0.1:$backend_port" --model "$model" --photos "$photos" \
    --decoder "$venv/bin/python" "$@"
