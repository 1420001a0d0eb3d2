"""`python -m cascade_mpi`: the command line of `cli`."""

import sys

from cascade_mpi.cli import main

if __name__ == "__main__":
    sys.exit(main())
