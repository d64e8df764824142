"""``python -m bench``: fastshap beside other tools."""

import sys

from bench.compare.command import main

if __name__ == "__main__":
    sys.exit(main())
