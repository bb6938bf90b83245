#!/usr/bin/env bash
# Launches sft/train.py on whatever this machine has; scripts/launch.sh has the details
exec bash "$(dirname "${BASH_SOURCE[0]}")/launch.sh" sft "$@"
