#!/usr/bin/env bash
# Launches sft/train.py: under DeepSpeed ZeRO-2 in bf16 on all GPUs of this machine, or on CPUs where there is none.
#   bash scripts/sft.sh --config NAME_OR_FILE [--sft.field VALUE ...]      PROCESSES=2 chooses another number of processes
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
if [ $# -eq 0 ]; then set -- --config ml-100k; fi
gpus=$(scripts/python -c 'import torch; print(torch.cuda.device_count())')
processes=${PROCESSES:-$((gpus > 0 ? gpus : 1))}
launch=(scripts/python -m accelerate.commands.launch --num_processes "$processes")
if [ "$gpus" -gt 0 ]; then
  exec "${launch[@]}" --config_file sft/zero2.yaml sft/train.py --sft.bf16 true "$@"
else
  exec "${launch[@]}" --num_machines 1 --mixed_precision no sft/train.py "$@"
fi
