"""Why are my numbers not the paper's? Our runs next to the published table, a replication and the published baselines.

Writes `paper_gap.json`, `paper_gap.md` and a self-contained `paper_gap.html`: gaps with intervals, an audit of the published
numbers, paired comparisons, several seeds, and the checklist of causes. A run is a folder of ours or a predictions file, also
the result JSON of the released MiniOneRec; without runs, the published tables alone.

    python eval/paper_gap.py --runs runs/industrial final_result_Industrial_and_Scientific.json --out report
"""

import sys

from minionerec.cli import main

if __name__ == "__main__":
    sys.exit(main(["gap", *sys.argv[1:]]))
