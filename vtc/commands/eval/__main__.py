"""`python -m vtc.commands.eval`, better known as `python -m vtc.eval`."""

import sys

from vtc.commands.eval import main

sys.exit(main())
