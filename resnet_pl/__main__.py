"""`python -m resnet_pl` is `python cli.py`."""

import sys

from resnet_pl.main import main

sys.exit(main())
