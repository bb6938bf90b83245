#!/usr/bin/env bash
# Installs what is missing and runs the test suite; arguments go to pytest (-m slow for the long ones).
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
exec scripts/python -m pytest "$@"
