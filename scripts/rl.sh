#!/usr/bin/env bash
# Launches rl/train.py on whatever this machine has; see scripts/launch.sh.
exec bash "$(dirname "${BASH_SOURCE[0]}")/launch.sh" rl "$@"
