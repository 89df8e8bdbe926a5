"""A small manifest, its plan and a server of it, one each for a test file."""

from collections.abc import Iterator

import pytest

from benchmarks.encode_server import small_data
from tests.training.encode.serving import RECIPE
from training.data.manifest import Manifest, open_manifest
from training.data.plan import BatchPlan, Job
from training.encode.answers import EncodeServer
from training.encode.encoder import Encoder, load_encoder


@pytest.fixture(scope="module")
def uri(tmp_path_factory: pytest.TempPathFactory) -> str:
    return small_data(tmp_path_factory.mktemp("data"))


@pytest.fixture(scope="module")
def manifest(uri: str, tmp_path_factory: pytest.TempPathFactory) -> Manifest:
    return open_manifest([uri], tmp_path_factory.mktemp("cache"))


@pytest.fixture(scope="module")
def plan(manifest: Manifest) -> BatchPlan:
    return BatchPlan(manifest, Job(recipe=RECIPE, seed=5, manifest=manifest.fingerprint))


@pytest.fixture(scope="module")
def encoder() -> Encoder:
    return load_encoder(None, RECIPE)


@pytest.fixture(scope="module")
def server(encoder: Encoder, manifest: Manifest) -> Iterator[EncodeServer]:
    server = EncodeServer(encoder, RECIPE, [manifest])
    yield server
    server.end()
