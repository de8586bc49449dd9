"""Entry point of `python -m loadtest.soak`."""

import sys

from loadtest.soak.driver import main

sys.exit(main(sys.argv[1:]))
