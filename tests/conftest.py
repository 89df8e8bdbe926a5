"""Settings of the test session: no hub, no analytics, one Prefect server for all tests that run a flow."""

import os
import uuid
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
from fsspec import filesystem
from prefect.settings import PREFECT_API_URL
from prefect.testing.utilities import prefect_test_harness

S3_SETTINGS = {
    "AWS_ACCESS_KEY_ID": "testing",
    "AWS_SECRET_ACCESS_KEY": "testing",
    "AWS_DEFAULT_REGION": "us-east-1",
    "AWS_EC2_METADATA_DISABLED": "true",
}

MEDIA = Path(__file__).resolve().parents[2] / "shared" / "media"


@pytest.fixture(autouse=True)
def ordinary_scheduling() -> Iterator[None]:
    """No test leaves this process with real-time priority: the tests beside it would starve."""
    yield
    if hasattr(os, "sched_getscheduler"):  # Linux
        assert os.sched_getscheduler(0) in (os.SCHED_OTHER, os.SCHED_BATCH, os.SCHED_IDLE)


@pytest.fixture(scope="session")
def prefect_api() -> Iterator[str]:
    """The address of a Prefect server of its own for this test session."""
    with prefect_test_harness(server_startup_timeout=180):
        yield PREFECT_API_URL.value()


@pytest.fixture(scope="session")
def s3_server() -> Iterator[str]:
    """The address of an S3 server on loopback, which this process and those it starts use for every ``s3://`` URI."""
    from moto.server import ThreadedMotoServer  # takes seconds, and few tests want it

    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    address = f"http://{host}:{port}"
    # The settings stay while the session lasts: s3fs reads them when a store is opened, and keeps stores open.
    with pytest.MonkeyPatch.context() as environment:
        for name, value in (S3_SETTINGS | {"AWS_ENDPOINT_URL": address}).items():
            environment.setenv(name, value)
        yield address
    server.stop()


@pytest.fixture
def s3(s3_server: str) -> str:
    """The URI of an empty bucket."""
    bucket = f"bucket-{uuid.uuid4().hex[:12]}"
    filesystem("s3").mkdir(bucket)
    return f"s3://{bucket}"


@pytest.fixture(scope="session")
def media() -> Path:
    """Real footage, where this machine has it."""
    if not MEDIA.is_dir():
        pytest.skip("no real footage on this machine")
    return MEDIA
