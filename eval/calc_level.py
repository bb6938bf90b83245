"""Where along the SID recommendations go wrong: accuracy per level, per prefix, drop-off, lost targets and calibration.

Reads a `predictions.jsonl` of ours, or the result JSON of the released MiniOneRec (`input`, `output`, `predict`); prints the
tables and writes `levels.json` and `levels.png`.

    python eval/calc_level.py --path runs/ml-100k/eval/sft/predictions.jsonl [--out DIR]
    python eval/calc_level.py --path final_result_Industrial_and_Scientific.json --index Industrial_and_Scientific.index.json
"""

import sys

from minionerec.cli import main

if __name__ == "__main__":
    sys.exit(main(["levels", *sys.argv[1:]]))
