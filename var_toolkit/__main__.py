"""`python -m var_toolkit` is `vargen`, for torchrun and for machines where scripts are not on the path."""

import sys

from var_toolkit.cli import main

if __name__ == "__main__":
    sys.exit(main())
