"""Supervised fine-tuning. The same as `minionerec sft`.

Run: accelerate launch --config_file sft/zero2.yaml sft/train.py --config ml-100k
"""

import sys

from minionerec.cli import main

if __name__ == "__main__":
    sys.exit(main(["sft", *sys.argv[1:]]))
