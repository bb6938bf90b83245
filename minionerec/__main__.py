"""`python -m minionerec` is the `minionerec` command."""

import sys

from minionerec.cli import main

sys.exit(main())
