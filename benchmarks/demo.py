"""`make demo`: build the sample library, curate it, and show what came of it beside what was planted.

Starts a Prefect server on the loopback interface if none answers, and leaves it running, so that the run can be
looked at in the UI.
"""

import os
import subprocess
import sys
import time
from pathlib import Path
from urllib.error import URLError
from urllib.request import urlopen

PORT = 4200
START_UP_S = 120


def answers(api: str) -> bool:
    try:
        with urlopen(f"{api}/health", timeout=5) as reply:
            return reply.status == 200
    except (URLError, OSError):
        return False


def find_or_start_server(log: Path) -> str:
    """The API address of a Prefect server that answers. SystemExit where none can be started."""
    api = os.environ.get("PREFECT_API_URL", f"http://127.0.0.1:{PORT}/api")
    if answers(api):
        return api
    if "PREFECT_API_URL" in os.environ:
        raise SystemExit(f"PREFECT_API_URL is {api}, and nothing answers there")
    print(f"starting a Prefect server on port {PORT} (log: {log})", flush=True)
    command = [sys.executable, "-m", "prefect", "server", "start", "--host", "127.0.0.1", "--port", str(PORT)]
    with log.open("wb") as output:
        server = subprocess.Popen(command, stdout=output, stderr=subprocess.STDOUT, start_new_session=True)
    for _ in range(START_UP_S):
        if answers(api):
            return api
        if server.poll() is not None:
            raise SystemExit(f"the Prefect server ended at once; see {log}")
        time.sleep(1)
    raise SystemExit(f"no Prefect server after {START_UP_S} s; see {log}")


def main() -> int:
    folder = Path(sys.argv[1] if len(sys.argv) > 1 else "demo").resolve()
    folder.mkdir(parents=True, exist_ok=True)
    api = find_or_start_server(folder / "prefect-server.log")
    # Prefect reads its settings when it is imported.
    os.environ["PREFECT_API_URL"] = api
    from benchmarks.sample_library import build
    from benchmarks.sample_truth import print_truth
    from flows.cli import main as curate

    if not (folder / "truth.json").exists():
        print("building the sample library", flush=True)
        build(folder)
    status = curate([str(folder / "videos"), str(folder / "curated")])
    if status == 0:
        print(f"UI        {api.removesuffix('/api')}\n")
        missed = print_truth(folder / "truth.json", folder / "curated")
        status = 1 if missed else 0
    return status


if __name__ == "__main__":
    sys.exit(main())
