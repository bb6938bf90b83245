#!/usr/bin/env bash
# Launches eval/predict.py on all GPUs of this machine, or on one CPU process: users are shared out, lists are merged.
#   bash scripts/evaluate.sh --config NAME_OR_FILE [--eval.field VALUE ...]      PROCESSES=2 chooses another number
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
if [ $# -eq 0 ]; then set -- --config ml-100k; fi
gpus=$(scripts/python -c 'import torch; print(torch.cuda.device_count())')
processes=${PROCESSES:-$((gpus > 0 ? gpus : 1))}
launch=(scripts/python -m accelerate.commands.launch --num_processes "$processes" --num_machines 1 --mixed_precision no)
exec "${launch[@]}" eval/predict.py "$@"
