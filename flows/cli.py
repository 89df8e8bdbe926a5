"""``curate-videos SOURCE OUTPUT [options]``: the flow from a shell, with the funnel as a table at its end."""

import argparse
import json
import sys
from pathlib import Path
from typing import Any

import fsspec
from pydantic import ValidationError

from flows.curate_videos import CurationConfig, curate_videos
from tasks.tables import storage
from tasks.tables.checks import PreflightError
from tasks.tables.funnel import as_text
from tasks.tables.run_record import NothingKept, counts


def parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="curate-videos", description="Curate raw videos into a training manifest.")
    parser.add_argument("source", help="folder, bucket or file")
    parser.add_argument("output", help="folder or bucket for the results")
    parser.add_argument("--profile", choices=["lite", "paper"], default="lite")
    parser.add_argument("--runner", choices=["threads", "processes", "ray"], default="threads")
    parser.add_argument("--ray-address", metavar="ray://HOST:PORT")
    parser.add_argument("--sources-per-shard", type=int, default=64, metavar="N")
    parser.add_argument("--config", type=Path, metavar="FILE.json", help="settings, as in OUT/run.json under 'config'")
    parser.add_argument(
        "--set", action="append", default=[], metavar="STEP.FIELD=VALUE", help="one setting: --set verdict.blur_min=80"
    )
    return parser.parse_args(arguments)


def config_of(file: Path | None, settings: list[str]) -> CurationConfig:
    """The config of a file with single settings on top. ValueError: a setting that is not STEP.FIELD=VALUE."""
    chosen: dict[str, Any] = json.loads(file.read_text()) if file else {}
    for setting in settings:
        path, equals, value = setting.partition("=")
        *parents, field = path.split(".")
        if not equals or not parents:
            raise ValueError(f"--set {setting}: write it as STEP.FIELD=VALUE")
        group = chosen
        for parent in parents:
            group = group.setdefault(parent, {})
        try:
            group[field] = json.loads(value)
        except json.JSONDecodeError:
            group[field] = value
    return CurationConfig.model_validate(chosen)


def main(arguments: list[str] | None = None) -> int:
    """Returns the exit status: 0, 1 for a run that failed or kept nothing, 2 for one that could not start."""
    options = parse(arguments)
    try:
        config = config_of(options.config, options.set)
    except (OSError, ValueError, ValidationError) as problem:
        print(f"curate-videos: {problem}", file=sys.stderr)
        return 2
    status = 0
    try:
        curate_videos(
            options.source,
            options.output,
            options.profile,
            options.runner,
            options.ray_address,
            options.sources_per_shard,
            config,
        )
    except PreflightError as problem:
        print(f"curate-videos: {problem}", file=sys.stderr)
        return 2
    except NothingKept as problem:
        print(f"curate-videos: {problem}", file=sys.stderr)
        status = 1
    except OSError as problem:
        print(f"curate-videos: {problem}; what was finished is kept: run the same command again", file=sys.stderr)
        return 1
    with fsspec.open(storage.join(options.output, "run.json")) as file:
        record = json.load(file)
    print(as_text(counts(record)))
    print(f"\nmanifest  {storage.join(options.output, 'manifest')}")
    print(f"report    {record['report']}")
    return status


if __name__ == "__main__":
    sys.exit(main())
