"""Item text to semantic IDs. Does what `minionerec sid` does.

Run: python sid/build.py --config ml-100k
"""

import sys

from minionerec.cli import main

if __name__ == "__main__":
    sys.exit(main(["sid", *sys.argv[1:]]))
