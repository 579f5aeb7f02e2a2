"""For all tests: no hub, and no deadline that a busy machine could miss."""

from __future__ import annotations

import os

from hypothesis import settings

os.environ["HF_HUB_OFFLINE"] = "1"
settings.register_profile("unhurried", deadline=None)
settings.load_profile("unhurried")
