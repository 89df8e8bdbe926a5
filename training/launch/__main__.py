"""``python -m training.launch RUN.json``: training on this machine, without a flow."""

import sys

from training.launch.local import main

sys.exit(main())
