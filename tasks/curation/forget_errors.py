"""What makes a run try again what ended in an error: a network that was down, a program that has been repaired.

A result that holds errors is kept like any other, since the same input gives the same error. To forget one is to remove
the result, and all results of its shard that were made of it.
"""

from collections import defaultdict
from collections.abc import Sequence

from tasks.curation.scores import SCORES
from tasks.tables import storage
from tasks.tables.keys import folder_of, key_of, shard_of, step_of
from tasks.tables.measure import Chosen, in_order
from tasks.tables.step import side_by_side
from tasks.tables.tally import errors_in

BEFORE_SCORES = ("scan", "embed", "dedup-sources", "cut", "dedup-clips")
AFTER_SCORES = ("verdict", "caption", "buckets", "clips")
KEY_DIGITS = len(key_of())


def forget_errors(root: str) -> list[str]:
    """Remove the results of the output ``root`` that hold an error, and what was made of them; returns their URIs.

    Of a source that could not be decoded, the record in its frame store goes, too, so that it is decoded again; other
    sources are not. Nothing is read of a table but what its file says of itself, and where its scan has errors.
    """
    tables = [uri for uri in storage.list_below(storage.join(root, "steps")) if _is_result(uri)]
    order = {step: place for place, step in enumerate(_steps())}
    after = order["verdict"] - 0.5  # a step that is not known by name is a filter of the user's own

    def place(table: str) -> float:
        return order.get(step_of(table), after)

    judged = [uri for uri in tables if step_of(uri) != "clips"]  # the wide tables repeat the errors of all steps
    failed = [uri for uri, errors in zip(judged, side_by_side(errors_in, judged), strict=True) if errors]
    first: dict[str, float] = defaultdict(lambda: float("inf"))
    for uri in failed:
        first[shard_of(uri)] = min(first[shard_of(uri)], place(uri))
    gone = [uri for uri in tables if place(uri) >= first[shard_of(uri)]]
    if any(place(uri) <= order["embed"] for uri in failed):
        # Which sources are copies was decided over all shards.
        folder = storage.join(root, "steps", "duplicates")
        gone += [uri for uri in storage.list_below(folder) if uri.endswith(".json")]
    # The last step first: where this is interrupted, what is left over still has its cause beside it.
    gone.sort(key=lambda uri: (-place(uri), uri))
    for uri in [*(record for table in failed for record in _records(root, table)), *gone]:
        storage.remove(uri)
    return gone


def _steps() -> Sequence[str]:
    scores = [each for piece in in_order([Chosen(score, score.config()) for score in SCORES]) for each in piece]
    return [*BEFORE_SCORES, *(each.step for each in scores), *AFTER_SCORES]


def _is_result(uri: str) -> bool:
    """Whether a file has the form of a shard's result; the lists of sources are none."""
    name, dot, end = uri.rsplit("/", 1)[1].partition(".")
    key = name.rpartition("-")[2]
    whole = len(key) == KEY_DIGITS and set(key) <= set("0123456789abcdef")
    return whole and dot + end == ".parquet" and step_of(uri) not in ("sources", "passthrough")


def _records(root: str, table: str) -> list[str]:
    """The records in the frame stores of sources that a table of the scan has errors of."""
    if step_of(table) != folder_of("scan"):
        return []
    rows = storage.read_table(table, ["error", "frames_uri"]).to_pylist()
    stores = [row["frames_uri"] for row in rows if row["error"] and row["frames_uri"]]
    return [storage.join(root, store, "source.json") for store in stores]
