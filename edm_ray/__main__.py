"""`python -m edm_ray COMMAND ...` is `edm-ray COMMAND ...`."""

import sys

from edm_ray.cli import main

if __name__ == "__main__":
    sys.exit(main())
