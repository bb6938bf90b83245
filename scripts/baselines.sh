#!/usr/bin/env bash
# Trains baselines one after the other, each by its preset. Finished baselines are skipped and an interrupted one resumes after its
# last epoch, so the same command may be given again and again.
#   SEQUENCES=FOLDER_WITH_Beauty.txt_AND_LastFM.txt bash scripts/baselines.sh [PRESET ...] [-- --baseline.field VALUE ...]
# Without SEQUENCES the paths in the presets are read. RUNS: the folder of the runs (default runs). RUN_PYTHON: another Python than
# scripts/python
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
all=(beauty-sasrec lastfm-sasrec lastfm-wearec lastfm-gru4rec beauty-gru4rec beauty-trm4rec-pos-fullbp-b1)
. scripts/presets.sh
for preset in "${presets[@]}"; do
  case $preset in
    beauty-*) file=Beauty.txt ;;
    lastfm-*) file=LastFM.txt ;;
    *) echo "scripts/baselines.sh: $preset is not a beauty-* or lastfm-* preset" >&2 && exit 2 ;;
  esac
  "$python" -m minionerec baseline --config "$preset" ${SEQUENCES:+--baseline.sequences "$SEQUENCES/$file"} --out "$runs/$preset" "$@"
done
