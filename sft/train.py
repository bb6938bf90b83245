"""Supervised fine-tuning. Does what `minionerec sft` does.

Run: accelerate launch --config_file sft/zero2.yaml sft/train.py --config industrial-qwen2.5-1.5b
sft/zero2.yaml computes in bfloat16; for a preset that does not, such as ml-100k, add --mixed_precision no before sft/train.py.
"""

import sys

from minionerec.cli import main

if __name__ == "__main__":
    sys.exit(main(["sft", *sys.argv[1:]]))
