"""The encode server: codec and text encoder on machines of their own, asked for batches over Arrow Flight.

The report, section 7.2, parts the frozen networks from the one that learns: they would take memory that training needs,
and storing what they make of ten million clips takes petabytes. A ticket names a job, a step and a data rank; the
answer is a pure function of them, of the manifest and of the weights. So a server has no state: any may answer any
ticket, and one that dies loses nothing.

    python -m training.encode.server --manifest URI --recipe stage2 --checkpoint FOLDER --port 8815

Loopback needs no token. Any other address does, as who can ask can read the data set; over a network that is not
trusted take a certificate too, or the token can be read on its way.
"""

import argparse
import logging
import signal
import sys
import threading
from collections.abc import Sequence
from pathlib import Path

import pyarrow as pa

from training.data.manifest import ManifestError, open_manifest
from training.encode.answers import READERS, EncodeServer
from training.encode.encoder import load_encoder
from training.encode.servers import is_loopback, read_token
from training.recipe import RecipeError, load_recipe

_log = logging.getLogger(__name__)


def _options(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--manifest", action="append", required=True, help="as in the run file; repeat it for several")
    parser.add_argument("--recipe", required=True, help="name or path; says which codec and text encoder to load")
    parser.add_argument("--checkpoint", help="folder with vae/ and the text encoders; not needed where both are lite")
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=8815, help="0 takes a free one")
    parser.add_argument("--token-file", type=Path, help="file with what clients must show")
    parser.add_argument("--tls-cert", type=Path, help="PEM file; needs --tls-key")
    parser.add_argument("--tls-key", type=Path)
    parser.add_argument("--device", default="cpu", help="cpu, cuda or npu")
    parser.add_argument("--readers", type=int, default=READERS, help="clips read at the same time")
    options = parser.parse_args(arguments)
    if bool(options.tls_cert) != bool(options.tls_key):
        parser.error("--tls-cert and --tls-key go together")
    if options.readers < 1:
        parser.error("--readers is at least 1")
    if options.token_file is None and not is_loopback(options.host):
        parser.error(f"{options.host} can be reached from other machines: that needs --token-file")
    return options


def main(arguments: Sequence[str] | None = None) -> int:
    """Serve until SIGTERM or SIGINT. Exit status 2: it cannot start, and the last line says why."""
    options = _options(arguments)
    logging.basicConfig(format="%(asctime)s %(levelname)s %(message)s")
    stop = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stop.set())
    try:
        token = read_token(options.token_file) if options.token_file else None
        certificate = (options.tls_cert.read_bytes(), options.tls_key.read_bytes()) if options.tls_cert else None
        recipe = load_recipe(options.recipe)
        manifest = open_manifest(options.manifest)
        encoder = load_encoder(options.checkpoint, recipe, options.device)
        server = EncodeServer(
            encoder,
            recipe,
            [manifest],
            host=options.host,
            port=options.port,
            token=token,
            certificate=certificate,
            readers=options.readers,
        )
    except (RecipeError, ManifestError, OSError, ValueError, pa.ArrowException) as problem:
        print(f"encode server cannot start: {problem}", file=sys.stderr)
        return 2
    if token and not certificate and not is_loopback(options.host):
        _log.warning("without --tls-cert the token and the data can be read on the network")
    print(f"listening on {server.address}", flush=True)
    stop.wait()
    server.end()
    return 0


if __name__ == "__main__":
    sys.exit(main())
