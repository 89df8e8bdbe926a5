"""What a run starts from: its sources, or the part of them that it takes, as shards in OUT/steps."""

import os
from collections.abc import Collection
from dataclasses import dataclass

from tasks.curation.space import check_space
from tasks.tables.checks import ROOTS, check_place, check_roots, check_writable
from tasks.tables.found import total_bytes
from tasks.tables.owner import check_owner
from tasks.tables.sample import estimate, take_part
from tasks.tables.shards import check_passed, write_passthrough, write_shards
from tasks.tables.sources import look
from tasks.tables.tally import bytes_below


@dataclass(frozen=True)
class Inputs:
    """The shards of a run, and how much it takes of how much. All JSON-able, so that a task can return it."""

    shards: list[str]  # URIs of the lists of sources
    passthrough: list[str]  # one for each shard, or none: URIs of the columns that an input list brings
    taken: tuple[int, int]  # sources, and their bytes
    whole: tuple[int, int]  # the same of all that were found
    notes: list[str]  # for the log


def inputs_of(
    source: str,
    output: str,
    sources_per_shard: int,
    samples_per_s: float,
    limit: int | None = None,
    sample: str | float | None = None,
    taken_names: Collection[str] = (),
) -> Inputs:
    """Find the sources, check that the output can take a run over them, and write their shards.

    Args:
        source: Folder, bucket, file or input list; see ``look``.
        output: Where the run writes; see ``check_owner`` for what is refused.
        sources_per_shard: About how many sources a shard has; fewer where they are large.
        samples_per_s: Of the scan: what the space check reckons with.
        limit: At most so many sources.
        sample: Only such a part of them; see ``take_part``.
        taken_names: Columns that an input list may not bring, as the run writes them itself.

    Raises PreflightError where the run cannot succeed, before anything but shards is written.
    """
    check_place(source, "source")
    check_place(output, "output")
    check_roots([source], "source")
    check_roots([output], "output")
    check_owner(output)
    found = look(source)
    if ROOTS in os.environ:  # a link or a line of an input list may lead out of the source
        check_roots(found.sources["source_uri"].to_pylist(), "source")
    check_passed(found.sources, taken_names)
    part = take_part(found.sources, limit, sample)
    check_writable(output)
    notes = [str(found), check_space(output, part, samples_per_s)]
    if part.num_rows < found.sources.num_rows:
        notes.insert(1, f"{part.num_rows} of them are taken")
    return Inputs(
        write_shards(part, output, sources_per_shard),
        write_passthrough(part, output, sources_per_shard),
        (part.num_rows, total_bytes(part)),
        (found.sources.num_rows, total_bytes(found.sources)),
        notes,
    )


def estimate_of(inputs: Inputs, seconds: float, output: str) -> str | None:
    """What a run over all sources would take, from one over a part that took ``seconds``; None: it took all.

    The disk is what lies in ``output`` now, so the sentence is right where the run began with an empty one.
    """
    return None if inputs.taken == inputs.whole else estimate(inputs.taken, inputs.whole, seconds, bytes_below(output))
