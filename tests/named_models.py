"""Names of models, for tests that take every one of them."""

import pytest

from var_toolkit.registry import ENTRIES, Embedded

DRAWING = [name for name, entry in ENTRIES.items() if entry.draws]


def by_size():
    """All models that draw, as parameters; of published ones only the first size of a kind is not slow."""
    first = {name.rpartition("-")[0]: name for name in reversed(DRAWING)}
    quick = [name for name in DRAWING if isinstance(ENTRIES[name].source, Embedded)] + list(first.values())
    return [pytest.param(name, marks=() if name in quick else pytest.mark.slow) for name in DRAWING]
