"""`python -m vtc` is the `vtc` command."""

import sys

from vtc.cli import main

if __name__ == "__main__":
    sys.exit(main())
