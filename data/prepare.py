"""Raw files to a Dataset. Does what `minionerec data prepare` does.

Run: python data/prepare.py --config ml-100k
"""

import sys

from minionerec.cli import main

if __name__ == "__main__":
    sys.exit(main(["data", "prepare", *sys.argv[1:]]))
