"""Settings of the test session: no hub, no analytics, one Prefect server for all tests that run a flow."""

import os
from collections.abc import Iterator
from pathlib import Path

os.environ.update(
    HF_HUB_OFFLINE="1",
    PREFECT_SERVER_ANALYTICS_ENABLED="false",
    RAY_USAGE_STATS_ENABLED="0",
    PREFECT_LOGGING_LEVEL="ERROR",
)
os.environ.pop("PREFECT_API_URL", None)

import pytest
from prefect.settings import PREFECT_API_URL
from prefect.testing.utilities import prefect_test_harness

MEDIA = Path(__file__).resolve().parents[2] / "shared" / "media"


@pytest.fixture(scope="session")
def prefect_api() -> Iterator[str]:
    """The address of a Prefect server of its own for this test session."""
    with prefect_test_harness(server_startup_timeout=180):
        yield PREFECT_API_URL.value()


@pytest.fixture(scope="session")
def media() -> Path:
    """Real footage, where this machine has it."""
    if not MEDIA.is_dir():
        pytest.skip("no real footage on this machine")
    return MEDIA
