"""The eval stage, each process killed without warning in its second shard: python tests/eval/killed.py --config NAME."""

import os
import sys

from minionerec.cli import main
from minionerec.eval.decode import SplitDecoder

original, shards = SplitDecoder.predict, []


def patched(self, rows):
    shards.append(rows)
    if len(shards) == 2:
        os._exit(9)
    return original(self, rows)


if __name__ == "__main__":
    SplitDecoder.predict = patched
    sys.exit(main(["eval", *sys.argv[1:]]))
