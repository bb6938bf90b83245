#!/usr/bin/env bash
# Launches a training stage, `sft` or `rl`: under DeepSpeed ZeRO-2 in bf16 on all GPUs of this machine, or on CPUs if there
# is none. scripts/sft.sh and scripts/rl.sh call it.
#   bash scripts/rl.sh --config NAME_OR_FILE [--rl.field VALUE ...]      PROCESSES=2 chooses another number of processes
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
stage=$1
shift
if [ $# -eq 0 ]; then set -- --config ml-100k; fi
gpus=$(scripts/python -c 'import torch; print(torch.cuda.device_count())')
processes=${PROCESSES:-$((gpus > 0 ? gpus : 1))}
launch=(scripts/python -m accelerate.commands.launch --num_processes "$processes")
if [ "$gpus" -gt 0 ]; then
  exec "${launch[@]}" --config_file "$stage/zero2.yaml" "$stage/train.py" "--$stage.bf16" true "$@"
else
  exec "${launch[@]}" --num_machines 1 --mixed_precision no "$stage/train.py" "$@"
fi
