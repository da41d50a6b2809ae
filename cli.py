"""Trains and evaluates ResNets from the command line: `python cli.py --help`."""

import sys

from resnet_pl.cli.main import main

if __name__ == "__main__":
    sys.exit(main())
