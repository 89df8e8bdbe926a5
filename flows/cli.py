"""``curate-videos SOURCE OUTPUT [options]``: the flow from a shell, with the funnel as a table at its end.

``curate-videos explain OUTPUT CLIP_ID`` prints why a clip was kept or not, and ``curate-videos clean OUTPUT`` removes
results that nothing uses any more. A source of such a name is written as ``./explain``.
"""

import argparse
import sys
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
from prefect.client.orchestration import get_client
from prefect.settings import PREFECT_API_URL
from pydantic import ValidationError

from flows.curate_videos import curate_videos
from flows.log_lines import quiet
from flows.settings import config_of, described
from flows.terminal import progress_shown
from tasks.curation.preflight import check_filters
from tasks.curation.settings import CurationConfig
from tasks.curation.verdict import limits
from tasks.pages.explain import explain
from tasks.tables import storage
from tasks.tables.checks import PreflightError
from tasks.tables.clean import clean
from tasks.tables.funnel import as_text
from tasks.tables.guard import words_of
from tasks.tables.run_record import FailedInPart, NothingKept, counts

STATUSES = """exit status:
  0  the run ended well and keeps clips
  1  it failed, failed in part (some shards did; the others are whole), or keeps no clip
  2  it could not start: no such source, a bad setting, no Prefect server"""

OTHERS = """other commands:
  curate-videos explain OUTPUT CLIP_ID     why a clip was kept or not
  curate-videos clean OUTPUT [--dry-run]   remove results that nothing uses any more"""


class _ShowSettings(argparse.Action):
    def __call__(self, parser: argparse.ArgumentParser, *_: object) -> None:
        print(described(CurationConfig()))
        parser.exit()


def at_least_one(text: str) -> int:
    """A whole number above 0. ValueError, which argparse puts into words: it is none."""
    if (number := int(text)) < 1:
        raise ValueError(text)
    return number


def parse(arguments: list[str]) -> argparse.Namespace:
    """The options of a run."""
    parser = argparse.ArgumentParser(
        prog="curate-videos",
        description="Curate raw videos into a training manifest.",
        epilog=f"{STATUSES}\n\n{OTHERS}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("source", help="folder, bucket or file")
    parser.add_argument("output", help="folder or bucket for the results")
    parser.add_argument("--profile", choices=["lite", "paper"], default="lite")
    parser.add_argument("--runner", choices=["threads", "processes", "ray"], default="threads")
    parser.add_argument("--ray-address", metavar="ray://HOST:PORT")
    parser.add_argument("--sources-per-shard", type=at_least_one, default=64, metavar="N")
    parser.add_argument("--limit", type=at_least_one, metavar="N", help="at most so many sources, drawn by hash")
    parser.add_argument(
        "--sample", metavar="1%", help="only such a part of the sources; the end says what all of them would take"
    )
    parser.add_argument("--retry-errors", action="store_true", help="make again what ended in an error in earlier runs")
    parser.add_argument("--config", type=Path, metavar="FILE.json", help="settings, or a run.json: those of that run")
    parser.add_argument(
        "--set", action="append", default=[], metavar="STEP.FIELD=VALUE", help="one setting: --set verdict.blur_min=80"
    )
    parser.add_argument("--show-settings", action=_ShowSettings, nargs=0, help="print all settings, and end")
    parser.add_argument("-v", "--verbose", action="store_true", help="log lines of all tasks instead of progress bars")
    return parser.parse_args(arguments)


def parse_explain(arguments: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="curate-videos explain", description="Print why a clip was kept or not.")
    parser.add_argument("output", help="what a run wrote into")
    parser.add_argument("what", metavar="CLIP_ID", help="beginning of a clip_id or source_id, or part of a URI")
    return parser.parse_args(arguments)


def parse_clean(arguments: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="curate-videos clean", description="Remove results and frames that the last finished run did not use."
    )
    parser.add_argument("output", help="what a run wrote into")
    parser.add_argument("--dry-run", action="store_true", help="only say what would be removed")
    return parser.parse_args(arguments)


def server_problem() -> str | None:
    """Why no flow can run: no Prefect server answers. None: one does."""
    try:
        with get_client(sync_client=True) as client:
            problem = client.api_healthcheck()
    except (RuntimeError, OSError, httpx.HTTPError) as failed:  # also: a temporary server that does not start
        problem = failed
    if problem is None:
        return None
    where = f"at PREFECT_API_URL={PREFECT_API_URL.value()}" if PREFECT_API_URL.value() else "of this run's own"
    return (
        f"no Prefect server answers {where} ({words_of(problem)}): start one with `prefect server start`, or unset "
        "PREFECT_API_URL for a temporary one"
    )


def run(arguments: list[str]) -> int:
    """Curate; returns the exit status."""
    options = parse(arguments)
    try:
        config = config_of(options.config, options.set)
    except (OSError, ValueError, ValidationError) as problem:
        return _say(str(problem), 2)
    status = 0
    try:
        with _shown(options.verbose):
            if (lacking := server_problem()) is not None:
                raise PreflightError(lacking)
            curate_videos(
                options.source,
                options.output,
                options.profile,
                options.runner,
                options.ray_address,
                options.sources_per_shard,
                config,
                options.limit,
                options.sample,
                options.retry_errors,
            )
    except PreflightError as problem:
        return _say(str(problem), 2)
    except (NothingKept, FailedInPart) as problem:
        status = _say(str(problem), 1)
    except KeyboardInterrupt:
        return _say("stopped; what was finished is kept: run the same command again", 1)
    except Exception as problem:
        if options.verbose:
            traceback.print_exc()
        return _say(f"{words_of(problem)}; what was finished is kept: run the same command again", 1)
    record = storage.read_json(storage.join(options.output, "run.json"))
    print(as_text(counts(record)))
    print(f"\nmanifest  {storage.join(options.output, 'manifest')}")
    print(f"report    {record['report']}")
    if record.get("estimate"):
        print(f"\n{record['estimate']}")
    return status


def run_explain(arguments: list[str]) -> int:
    """Print why; returns the exit status: 0, or 2 where there is nothing to explain."""
    options = parse_explain(arguments)
    try:
        record = storage.read_json(storage.join(options.output, "run.json"))
        thresholds = CurationConfig.model_validate(record["config"]).verdict
        print(explain(options.output, options.what, limits(thresholds, check_filters(thresholds))))
    except FileNotFoundError:
        return _say(f"{options.output} has no run.json: no curation has ended there", 2)
    except (OSError, LookupError, PreflightError, ValidationError) as problem:
        return _say(str(problem.args[0] if isinstance(problem, LookupError) else problem), 2)
    return 0


def run_clean(arguments: list[str]) -> int:
    """Remove dead results; returns the exit status: 0, or 2 where there is no finished run, or one is running."""
    options = parse_clean(arguments)
    try:
        print(clean(options.output, options.dry_run))
    except (OSError, PreflightError) as problem:
        return _say(str(problem), 2)
    return 0


COMMANDS: dict[str, Callable[[list[str]], int]] = {"explain": run_explain, "clean": run_clean}


def main(arguments: list[str] | None = None) -> int:
    """Returns the exit status: see STATUSES."""
    arguments = sys.argv[1:] if arguments is None else arguments
    if arguments and arguments[0] in COMMANDS:
        return COMMANDS[arguments[0]](arguments[1:])
    return run(arguments)


@contextmanager
def _shown(verbose: bool) -> Iterator[None]:
    """Log lines, or progress."""
    if verbose:
        yield
    else:
        with quiet(), progress_shown(sys.stderr):
            yield


def _say(words: str, status: int) -> int:
    print(f"curate-videos: {words}", file=sys.stderr)
    return status


if __name__ == "__main__":
    sys.exit(main())
