"""``python -m proofs.inverse``."""

import sys

from .run_all import main

if __name__ == "__main__":
    sys.exit(main())
