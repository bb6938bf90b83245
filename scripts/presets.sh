#!/usr/bin/env bash
# Read by scripts/baselines.sh and scripts/rivals.sh, not run: the presets before --, those of `all` if there is none; the options
# behind it stay in "$@". Also the Python and the folder of the runs.
python=${RUN_PYTHON:-scripts/python} runs=${RUNS:-runs}
presets=()
while [ $# -gt 0 ] && [ "$1" != -- ]; do
  presets+=("$1")
  shift
done
if [ $# -gt 0 ]; then shift; fi
if [ ${#presets[@]} -eq 0 ]; then presets=("${all[@]}"); fi
