"""Constrained 50-beam evaluation. Does what `minionerec eval` does.

Run: python eval/predict.py --config ml-100k
"""

import sys

from minionerec.cli import main

if __name__ == "__main__":
    sys.exit(main(["eval", *sys.argv[1:]]))
