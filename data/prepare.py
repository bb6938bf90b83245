"""Raw files to a Dataset. The same as `minionerec data prepare`.

Run: python data/prepare.py --config ml-100k
"""

import sys

from minionerec.cli import main

if __name__ == "__main__":
    sys.exit(main(["data", "prepare", *sys.argv[1:]]))
