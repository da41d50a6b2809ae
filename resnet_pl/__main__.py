"""`python -m resnet_pl` is `python cli.py`."""

import sys

from resnet_pl.cli.main import main

sys.exit(main())
