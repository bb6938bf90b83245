#!/usr/bin/env bash
# Launches rl/train.py: under DeepSpeed ZeRO-2 in bf16 on all GPUs of this machine, or on CPUs where there is none.
#   bash scripts/rl.sh --config NAME_OR_FILE [--rl.field VALUE ...]      PROCESSES=2 chooses another number of processes
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
if [ $# -eq 0 ]; then set -- --config ml-100k; fi
gpus=$(scripts/python -c 'import torch; print(torch.cuda.device_count())')
processes=${PROCESSES:-$((gpus > 0 ? gpus : 1))}
launch=(scripts/python -m accelerate.commands.launch --num_processes "$processes")
if [ "$gpus" -gt 0 ]; then
  exec "${launch[@]}" --config_file rl/zero2.yaml rl/train.py --rl.bf16 true "$@"
else
  exec "${launch[@]}" --num_machines 1 --mixed_precision no rl/train.py "$@"
fi
