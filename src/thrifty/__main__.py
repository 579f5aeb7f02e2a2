"""``python -m thrifty`` is the command; so is ``torchrun -m thrifty``, with several processes."""

import sys

from thrifty.cli import main

sys.exit(main())
