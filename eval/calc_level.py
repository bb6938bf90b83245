"""Where along the SID recommendations go wrong: accuracy per level, per prefix, and drop-off.

Reads a `predictions.jsonl`, prints three tables and writes `levels.json`.

    python eval/calc_level.py --path runs/ml-100k/eval/sft/predictions.jsonl [--out DIR]
"""

import sys

from minionerec.eval.calc_level import main

if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
