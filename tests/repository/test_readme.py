"""Every command and Python example in README, docs/paper.md and docs/tune.md runs, at small size, without a network.

Those of the other pages of the site run in `make test-slow` only.

Each command is one test in its own working directory, so the tests do not depend on their order. `Prepared` generates
what the commands read: datasets, pretrained weights and finished runs. A working directory has links to the data and a
copy of the runs, because a command may change a run.

A user may edit README or replace it. A command that reads something that only the user has is therefore skipped:
`own_input` returns what that is. Everything that ships with the project can be prepared, so a shipped command fails if
it is wrong: an unknown option, value, subcommand, short class name or file below `configs/`.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Callable
from pathlib import Path

import cmarkgfm
import pytest

from resnet_pl.cli.main import main
