"""Settings of the tests of the compression."""

from collections.abc import Iterator

import pytest
from threadpoolctl import threadpool_limits


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    """Threads gain nothing on matrices this small, and cost a hundredfold where the cores are shared."""
    with threadpool_limits(1):
        yield
