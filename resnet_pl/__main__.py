"""Makes `python -m resnet_pl` the same as `python cli.py`."""

import sys

from resnet_pl.cli.main import main

sys.exit(main())
