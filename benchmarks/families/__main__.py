"""`python -m benchmarks.families`: see the package."""

import sys

from benchmarks.families.sweep import main

if __name__ == "__main__":
    sys.exit(main())
