"""How many examples a property gets: HYPOTHESIS_PROFILE is ``default`` (a fifth, for the default tier) or ``full``."""

from __future__ import annotations

import os
from typing import Any

from hypothesis import settings

PROFILE = os.environ.get("HYPOTHESIS_PROFILE", "default")
SHARE = {"default": 5, "full": 1}[PROFILE]


def examples(count: int, **options: Any) -> settings:
    """The settings of a property that gets ``count`` examples in the profile ``full``."""
    return settings(max_examples=max(count // SHARE, 40), deadline=None, **options)
