#!/usr/bin/env bash
# The table of labelled pairs of MovieLens-100K (docs/scoring.md): controls, MiniLM's vectors, and models that are trained on
# tokens of their own for items, on titles (saying YES or NO, and matching) and on semantic IDs. Finished models are kept and an
# interrupted training resumes, so the same command may be given again. Arguments go to every training, e.g. --score.resamples 200
# RUNS: the folder of the runs (default runs). RUN_PYTHON: another Python than scripts/python
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
python=${RUN_PYTHON:-scripts/python}
run=${RUNS:-runs}/ml-100k-pairs
train() { "$python" -m minionerec score --train --config "$1" --out "$run" "${@:2}"; }
train ml-100k-pairs-ids "$@"
train ml-100k-pairs --yes_no.items text --yes_no.epochs 4 "$@"
train ml-100k-pairs --yes_no.items text --yes_no.epochs 4 --yes_no.scheme matching --yes_no.pooling mean "$@"
train ml-100k-pairs "$@"
"$python" -m minionerec pairs table "$run" --html "$run/pairs.html" >"$run/pairs.txt"
echo "written to $run/pairs.html"
