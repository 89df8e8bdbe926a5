"""Gallery: what a run of generation made, as one page, one table, and one artifact in the Prefect UI.

OUT/videos.parquet  every request: prompt, seed, video, seconds, error, settings
OUT/gallery.html    the videos beside their prompts; it plays the files of OUT/videos, and moves together with them
"""

import base64
import html
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from urllib.parse import quote

import av
import numpy as np
import pyarrow as pa
from prefect.artifacts import create_link_artifact, create_markdown_artifact
from prefect.context import TaskRunContext

from tasks.generation.generate import VIDEOS, GenerationConfig
from tasks.pages.page import template
from tasks.tables import storage
from tasks.tables.frame_store import encode_jpeg
from tasks.tables.keys import root_of
from tasks.tables.picture import shrink
from tasks.tables.run_record import remove_record
from tasks.tables.step import Row, side_by_side, step_task

# The page and the artifact are bounded, whatever the number of videos: the table has them all.
ON_PAGE, IN_ARTIFACT = 400, 24
PAGE_SIDE, ARTIFACT_SIDE = 320, 144
PROMPT_IN_ARTIFACT = 160


def poster(uri: str, longest: int) -> str:
    """The middle frame of a video, at most ``longest`` pixels on its longest side, as a JPEG data URI."""
    with storage.open_read(uri) as file, av.open(file, "r") as container:
        stream = container.streams.video[0]
        middle = stream.frames // 2
        image = next(
            frame.to_ndarray(format="rgb24")
            for number, frame in enumerate(container.decode(stream))
            if number == middle
        )
    jpeg = encode_jpeg(shrink(np.asarray(image, np.uint8), longest), quality=80)
    return f"data:image/jpeg;base64,{base64.b64encode(jpeg).decode()}"


def posters(rows: Sequence[Row], root: str, longest: int) -> list[str]:
    return list(side_by_side(lambda row: poster(storage.join(root, row["uri"]), longest), rows))


def render(rows: Sequence[Row], root: str, config: GenerationConfig) -> str:
    """The page as HTML: the first videos with their prompts, and every request that has none."""
    made = [row for row in rows if not row["error"]]
    shown = made[:ON_PAGE]
    cards: list[dict[str, Any]] = [
        row | {"href": quote(row["uri"]), "poster": still}
        for row, still in zip(shown, posters(shown, root, PAGE_SIDE), strict=True)
    ]
    failed = [row for row in rows if row["error"]]
    return template("gallery.html").render(
        name=root.rstrip("/").rsplit("/", 1)[-1],
        cards=cards,
        made=len(made),
        failed=failed[:ON_PAGE],
        failures=len(failed),
        config=config,
        checkpoint=rows[0]["checkpoint"],
        length_s=config.frames / config.fps,
    )


def markdown(rows: Sequence[Row], root: str) -> str:
    """The first videos as a table with small pictures, for the artifact."""
    made = [row for row in rows if not row["error"]]
    shown = made[:IN_ARTIFACT]
    lines = [
        f"**{len(made)}** of {len(rows)} videos in `{root}`",
        "",
        "| | prompt | seed | video |",
        "|---|---|---|---|",
    ]
    for row, still in zip(shown, posters(shown, root, ARTIFACT_SIDE), strict=True):
        prompt = _cell(row["prompt"])
        lines.append(f"| ![]({still}) | {prompt} | {row['seed']} | [{_cell(row['uri'])}]({_link(root, row['uri'])}) |")
    failed = [row for row in rows if row["error"]][:IN_ARTIFACT]
    lines += [f"| none | {_cell(row['prompt'])} | {row['seed']} | {_cell(row['error'])} |" for row in failed]
    return "\n".join(lines)


def _cell(text: str) -> str:
    """Text as the cell of a Markdown table: one line, nothing in it that Markdown or HTML would read."""
    short = text if len(text) <= PROMPT_IN_ARTIFACT else f"{text[:PROMPT_IN_ARTIFACT]}…"
    plain = html.escape(" ".join(short.split()))
    return "".join(f"\\{letter}" if letter in "\\`*_[]|!~" else letter for letter in plain)


def _link(root: str, *parts: str) -> str:
    uri = storage.join(root, *parts)
    return uri if "://" in uri else Path(uri).resolve().as_uri()


@step_task("gallery")
def gallery(tables: list[str], config: GenerationConfig) -> str:
    """Publish the batches' tables as OUT/videos.parquet and OUT/gallery.html; returns the URI of the page."""
    root = root_of(tables[0])
    remove_record(root)
    videos = pa.concat_tables([storage.read_table(table) for table in tables])
    storage.write_table(videos.cast(VIDEOS), storage.join(root, "videos.parquet"))
    rows = videos.to_pylist()
    uri = storage.join(root, "gallery.html")
    page = render(rows, root, config)
    with storage.writing(uri) as file:
        file.write(page.encode())
    if TaskRunContext.get():
        create_markdown_artifact(markdown(rows, root), key="generation-gallery", description="What was generated")
        create_link_artifact(_link(root, "gallery.html"), link_text="gallery.html", key="generation-page")
    return uri
