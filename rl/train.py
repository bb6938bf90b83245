"""GRPO with ranking rewards. The same as `minionerec rl`.

Run: accelerate launch --config_file rl/zero2.yaml rl/train.py --config ml-100k
"""

import sys

from minionerec.cli import main

if __name__ == "__main__":
    sys.exit(main(["rl", *sys.argv[1:]]))
