#!/usr/bin/env bash
# Trains and evaluates rivals of the generative model one after the other, each by its preset. Finished stages are skipped and an
# interrupted training resumes, so the same command may be given again and again.
#   DATA=FOLDER_OF_THE_RELEASED_FILES bash scripts/rivals.sh [PRESET ...] [-- --section.field VALUE ...]
# Presets: industrial-sdpo industrial-tiger industrial-lazy industrial-rpg industrial-liger industrial-lcrec-tiny
# industrial-bigrec-tiny (all, if none is named), and for a GPU industrial-lcrec-smollm2 and industrial-bigrec-smollm2 (first:
# minionerec model get smollm2-135m). Without DATA the files are downloaded. VECTORS: a .npy file of item vectors for industrial-rpg
# and industrial-liger, instead of embedding the texts.
# RUNS: the folder of the runs (default runs). RUN_PYTHON: another Python than scripts/python
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
all=(industrial-sdpo industrial-tiger industrial-lazy industrial-rpg industrial-liger industrial-lcrec-tiny industrial-bigrec-tiny)
. scripts/presets.sh
for preset in "${presets[@]}"; do # all of them before the first is trained
  case $preset in
    industrial-sdpo | industrial-tiger | industrial-lazy | industrial-rpg | industrial-liger) ;;
    industrial-lcrec-tiny | industrial-lcrec-smollm2 | industrial-bigrec-tiny | industrial-bigrec-smollm2) ;;
    -*) echo "scripts/rivals.sh: options go behind --: scripts/rivals.sh PRESET -- $preset ..." >&2 && exit 2 ;;
    *) echo "scripts/rivals.sh: $preset is not industrial-sdpo, -tiger, -lazy, -rpg, -liger, -lcrec-{tiny,smollm2} or -bigrec-{tiny,smollm2}" >&2 && exit 2 ;;
  esac
done
for preset in "${presets[@]}"; do
  case $preset in
    industrial-sdpo) stages=(run) ;;
    industrial-lcrec-* | industrial-bigrec-*) stages=("data prepare" sid sft eval) ;; # no RL
    *) stages=("data prepare" sid baseline) ;;
  esac
  for stage in "${stages[@]}"; do
    vectors=()
    case $preset in
      industrial-rpg | industrial-liger) vectors=(${VECTORS:+--sid.vectors "$VECTORS"}) ;; # no other preset reads item vectors
    esac
    # shellcheck disable=SC2086  # "data prepare" is two words
    "$python" -m minionerec $stage --config "$preset" --out "$runs/$preset" ${DATA:+--data.path "$DATA"} \
      ${vectors[@]+"${vectors[@]}"} "$@"
  done
done
