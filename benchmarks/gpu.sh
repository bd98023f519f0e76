#!/usr/bin/env bash
# What one GPU gives: first that it computes what the CPU computes, then how fast, and what limits it.
#
#     benchmarks/gpu.sh [--small] [--out FOLDER]
#
# Needs a checkout and a python3 with torch; nothing is downloaded and nothing is installed. At most ten minutes on one
# card. Without a card it runs small, on the CPU, so that it cannot rot.
set -euo pipefail
cd "$(dirname "$0")/.."
python=python3
[ -x .venv/bin/python ] && python=.venv/bin/python
PYTHONPATH="src:benchmarks${PYTHONPATH:+:$PYTHONPATH}" exec "$python" benchmarks/gpu.py "$@"
