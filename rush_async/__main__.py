"""`python -m rush_async worker ...`: the program `rush-async`."""

import sys

from rush_async.cli.program import main

if __name__ == "__main__":
    sys.exit(main())
