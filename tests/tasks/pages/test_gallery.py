"""The gallery shows what was made, safely, and in bounds."""

import base64
import re

import pytest
import torch

from models.video_file import GenerationMetadata, write_video
from tasks.generation.generate import GenerationConfig
from tasks.pages import gallery as module
from tasks.pages.gallery import markdown, poster, render
from tasks.tables.frame_store import decode_jpeg

CONFIG = GenerationConfig(frames=5, height=64, width=96, steps=2)
PROMPTS = ["a <b>cat</b> | [x](y)", "a dog\nruns", "<script>alert(1)</script>"]


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """Three videos that go from dark to bright: the middle frame is grey."""
    root = tmp_path_factory.mktemp("out put")
    video = torch.linspace(-1, 1, 5).view(1, 5, 1, 1).expand(3, 5, 64, 96)
    for index in range(3):
        write_video(video, str(root / "videos" / f"{index:05d}-a#b.mp4"), GenerationMetadata("a", 0))
    return root


def rows(**changes):
    base = {"seed": 7, "seconds": 1.5, "error": None, "checkpoint": "c0ffee", "config": "{}"}
    return [
        base | {"index": i, "prompt": prompt, "uri": f"videos/{i:05d}-a#b.mp4"} | changes
        for i, prompt in enumerate(PROMPTS)
    ]


def test_a_poster_is_the_middle_frame_small(root):
    data = poster(str(root / "videos" / "00000-a#b.mp4"), longest=48)
    image = decode_jpeg(base64.b64decode(data.removeprefix("data:image/jpeg;base64,")))
    assert image.shape == (32, 48, 3)
    assert abs(float(image.mean()) - 127.5) < 4


def test_the_page_plays_the_files_beside_it_and_shows_prompts_as_text(root):
    page = render(rows(), str(root), CONFIG)
    assert page.count("<video ") == 3
    assert 'src="videos/00000-a%23b.mp4"' in page and str(root) not in page
    assert "a &lt;b&gt;cat&lt;/b&gt; | [x](y)" in page and "<script>alert" not in page
    assert "seed 7" in page and "c0ffee" in page
    assert not re.search(r'(src|href)="https?:', page)


def test_requests_without_a_video_are_listed_with_their_error(root):
    page = render([*rows()[:1], *rows(error="generate: <no>")[1:]], str(root), CONFIG)
    assert page.count("<video ") == 1 and "2 without a video" in page and "generate: &lt;no&gt;" in page
    assert render(rows(error="generate: bad"), str(root), CONFIG).count("<video ") == 0


def test_the_page_is_bounded_and_says_so(root, monkeypatch):
    monkeypatch.setattr(module, "ON_PAGE", 2)
    page = render(rows(), str(root), CONFIG)
    assert page.count("<video ") == 2
    assert "The first 2 are shown" in page and "3 generated videos" in page


def test_the_artifact_is_a_table_whose_cells_no_prompt_can_break(root):
    lines = markdown([*rows()[:2], rows(error="bad | thing")[2]], str(root)).splitlines()
    table = lines[2:]
    assert len(table) == 2 + 3
    assert all(len(re.findall(r"(?<!\\)\|", line)) == 5 for line in table)
    assert table[2].startswith("| ![](data:image/jpeg;base64,")
    assert r"a &lt;b&gt;cat&lt;/b&gt; \| \[x\](y)" in table[2]
    assert "a dog runs" in table[3] and r"bad \| thing" in table[4]
    assert "(file:///" in table[2] and "%23b.mp4)" in table[2]
    assert len("".join(lines)) < 40_000
