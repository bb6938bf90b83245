"""GRPO with ranking rewards. Does what `minionerec rl` does.

Run: accelerate launch --config_file rl/zero2.yaml rl/train.py --config industrial-qwen2.5-1.5b
rl/zero2.yaml computes in bfloat16; for a preset that does not, such as ml-100k, add --mixed_precision no before rl/train.py.
"""

import sys

from minionerec.cli import main

if __name__ == "__main__":
    sys.exit(main(["rl", *sys.argv[1:]]))
