#!/usr/bin/env bash
# Trains and evaluates rivals of the generative model one after the other, each by its preset. Finished stages are skipped and an
# interrupted training resumes, so the same command may be given again and again.
#   DATA=FOLDER_OF_THE_RELEASED_FILES bash scripts/rivals.sh [PRESET ...] [-- --section.field VALUE ...]
# Presets: industrial-sdpo industrial-d3 industrial-tiger industrial-letter-tiger industrial-lazy industrial-rpg industrial-liger
# industrial-lcrec-tiny industrial-bigrec-tiny (all, if none is named); for a GPU industrial-lcrec-smollm2 and
# industrial-bigrec-smollm2 (first: minionerec model get smollm2-135m); with DATA a folder of LETTER's files, in a call of their
# own, beauty-tiger and beauty-lazy. Without DATA the released files are downloaded. VECTORS: a .npy file of item vectors for
# industrial-rpg, -liger and -letter-tiger, instead of embedding the texts. RUNS: the folder of the runs (default runs); another
# seed (-- --seed N) needs another one. RUN_PYTHON: another Python than scripts/python
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
all=(industrial-{sdpo,d3,tiger,letter-tiger,lazy,rpg,liger,lcrec-tiny,bigrec-tiny})
. scripts/presets.sh
for preset in "${presets[@]}"; do # all of them before the first is trained
  case $preset in
    industrial-sdpo | industrial-d3 | industrial-tiger | industrial-letter-tiger | industrial-lazy | industrial-rpg | industrial-liger) ;;
    industrial-lcrec-tiny | industrial-lcrec-smollm2 | industrial-bigrec-tiny | industrial-bigrec-smollm2) ;;
    beauty-tiger | beauty-lazy) ;;
    -*) echo "scripts/rivals.sh: options go behind --: scripts/rivals.sh PRESET -- $preset ..." >&2 && exit 2 ;;
    *) echo "scripts/rivals.sh: $preset is not industrial-sdpo, -d3, -tiger, -letter-tiger, -lazy, -rpg, -liger, -lcrec-{tiny,smollm2} or -bigrec-{tiny,smollm2}, nor beauty-tiger or -lazy" >&2 && exit 2 ;;
  esac
done
for preset in "${presets[@]}"; do
  case $preset in
    industrial-sdpo) stages=(run) ;;
    industrial-d3) stages=("data prepare" sid sft baseline eval) ;; # the baseline is the assistant
    industrial-letter-tiger) stages=("data prepare" "baseline --baseline.model sasrec --baseline.hidden_size 32" sid baseline eval) ;; # sid reads SASRec
    industrial-lcrec-* | industrial-bigrec-*) stages=("data prepare" sid sft eval) ;; # no RL
    *) stages=("data prepare" sid baseline) ;;
  esac
  for stage in "${stages[@]}"; do
    vectors=()
    case $preset in # no other one reads item vectors
      industrial-rpg | industrial-liger | industrial-letter-tiger) vectors=(${VECTORS:+--sid.vectors "$VECTORS"}) ;;
    esac
    # shellcheck disable=SC2086  # "data prepare" is two words
    "$python" -m minionerec $stage --config "$preset" --out "$runs/$preset" ${DATA:+--data.path "$DATA"} \
      ${vectors[@]+"${vectors[@]}"} "$@"
  done
done
