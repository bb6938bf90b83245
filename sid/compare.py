"""Several quantizers on one catalog, in one table. Does what `minionerec sid compare` does.

Run: python sid/compare.py --config ml-100k --methods rq-kmeans-joint,rq-kmeans,rq-vae
"""

import sys

from minionerec.cli import main

if __name__ == "__main__":
    sys.exit(main(["sid", "compare", *sys.argv[1:]]))
