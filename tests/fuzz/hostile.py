"""Values that people and files really hold where something else was meant, and how many of them are tried.

The tests try the same few in every run; `make fuzz` sets `FUZZ_EXAMPLES` and tries ever new ones.
"""

from __future__ import annotations

import math
import os

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st


EXAMPLES = int(os.environ.get("FUZZ_EXAMPLES", "0"))


def tried(few: int) -> settings:
    """Decorator of a test: how often it runs."""
    return settings(
        max_examples=EXAMPLES or few,
        derandomize=not EXAMPLES,
        deadline=None,
        database=None,
        print_blob=True,
        report_multiple_bugs=True,
        suppress_health_check=list(HealthCheck),
    )


numbers = st.sampled_from([0, 1, 2, 3, 7, 32, 64, 255, 256, -1, -3, 10**6, 2**31, 2**63, 0.0, 0.5, 1.0, -0.5, 30.5])
not_finite = st.sampled_from([math.nan, math.inf, -math.inf])
words = st.sampled_from(["", "semantic", "auto", "None", "1e38", "../..", "a" * 300, "naïve ☃", "\n", "-1", "[1, 2]"])
containers = st.sampled_from([None, [], {}, [1], {"a": 1}, [[1]], (3, 4), {"shortest_edge": -3}])
anything = st.one_of(numbers, not_finite, words, containers, st.booleans())
