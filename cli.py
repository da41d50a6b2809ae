"""Train, validate, test and use residual networks: `python cli.py --help`."""

import sys

from resnet_pl.cli.main import main

if __name__ == "__main__":
    sys.exit(main())
