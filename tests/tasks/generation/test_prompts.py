"""Prompts from every source that the flow takes, and the batches and file names that become of them."""

import pyarrow as pa
import pytest

from tasks.generation.prompts import Prompt, read_prompts, requests, slug, video_name, write_batches
from tasks.tables import storage
from tasks.tables.checks import PreflightError
from tests.tasks.rows import clip, wide


def test_a_text_file_has_a_prompt_a_line(tmp_path):
    path = tmp_path / "prompts.txt"
    path.write_text("\ufeffa cat\n\n  a dog, naïve 犬  \r\n", encoding="utf-8")
    assert read_prompts(str(path)) == [Prompt("a cat"), Prompt("a dog, naïve 犬")]


def test_json_lines_and_csv_may_bring_seeds(tmp_path):
    (tmp_path / "p.jsonl").write_text('{"prompt": "a \\"cat\\"", "seed": 7, "note": "x"}\n\n{"prompt": "a dog"}\n')
    (tmp_path / "p.csv").write_text('prompt,seed\n"a ""cat""",7\n"a\ndog",\n')
    assert read_prompts(str(tmp_path / "p.jsonl")) == [Prompt('a "cat"', 7), Prompt("a dog")]
    assert read_prompts(str(tmp_path / "p.csv")) == [Prompt('a "cat"', 7), Prompt("a\ndog")]


def test_seeds_of_a_table_with_gaps_are_floats_and_a_gap_is_no_seed(tmp_path):
    columns = {"prompt": ["a cat", "a dog", "a cow"], "seed": [7.0, None, float("nan")]}
    storage.write_table(pa.table(columns), str(tmp_path / "p.parquet"))
    assert read_prompts(str(tmp_path / "p.parquet")) == [Prompt("a cat", 7), Prompt("a dog"), Prompt("a cow")]
    (tmp_path / "p.csv").write_text(" prompt , seed \na cat,7\n")
    assert read_prompts(str(tmp_path / "p.csv")) == [Prompt("a cat", 7)]


@pytest.mark.parametrize("folder", ["a::b", "100%d", "one #1"])
def test_a_path_is_plain_whatever_its_letters(tmp_path, folder):
    (tmp_path / folder).mkdir()
    row = clip(caption_detailed="a cat")
    storage.write_table(storage.read_table(wide(tmp_path, [row])), str(tmp_path / folder / "manifest" / "p.parquet"))
    (tmp_path / folder / "p.txt").write_text("a cat\n")
    (tmp_path / folder / "p.csv").write_text("prompt\na cat\n")
    for name in ("manifest", "p.txt", "p.csv"):
        assert read_prompts(str(tmp_path / folder / name)) == [Prompt("a cat")]


def test_a_manifest_gives_its_captions_in_the_order_of_its_files(tmp_path):
    for part, name in enumerate("ab"):
        row = clip(clip_id=name, caption_detailed=f"{name} in detail", caption_short=name)
        table = storage.read_table(wide(tmp_path / name, [row]))
        storage.write_table(table, str(tmp_path / "manifest" / f"aspect=16x9/duration=5/part-{part:05d}.parquet"))
    manifest = str(tmp_path / "manifest")
    assert [prompt.text for prompt in read_prompts(manifest)] == ["a in detail", "b in detail"]
    assert [prompt.text for prompt in read_prompts(manifest, "caption_short")] == ["a", "b"]
    assert [prompt.text for prompt in read_prompts(manifest, limit=1)] == ["a in detail"]


@pytest.mark.parametrize(
    "name, content, words",
    [
        ("p.txt", "\n \n", "holds no prompt"),
        ("p.jsonl", '{"prompt": "a"}\nnot json\n', "line 2: no JSON"),
        ("p.jsonl", '{"text": "a"}\n', "line 1: there is no prompt"),
        ("p.csv", "prompt,seed\na,-1\n", "line 2: seed '-1' is no whole number"),
        ("p.csv", "caption\na\n", "line 1: the header names one column prompt, .* not caption"),
        ("p.csv", "a cat,7\na dog,8\n", "line 1: the header names one column prompt"),
        ("p.csv", "prompt,prompt\na,b\n", "line 1: the header names one column prompt"),
        ("p.csv", "", "line 1: the header"),
        ("p.csv", "prompt,seed\na cat, running,7\n", "line 2: more fields than columns"),
        ("p.csv", "prompt,seed\na,7.5\n", "line 2: seed '7.5' is no whole number"),
        ("p.jsonl", '{"prompt": "a", "seed": 1.5}\n', "line 1: seed 1.5 is no whole number"),
        ("p.jsonl", '{"prompt": "a", "seed": true}\n', "line 1: seed True is no whole number"),
        ("p.jsonl", '{"prompt": "a", "seed": [7]}\n', "line 1: seed .* is no whole number"),
        ("p.jsonl", '{"prompt": "a", "seed": 1e300}\n', "line 1: seed .* is no whole number"),
        ("p.jsonl", '{"prompt": 7}\n', "line 1: there is no prompt"),
        ("p.docx", "a", r"is no \.txt, \.jsonl, \.csv, \.parquet file"),
    ],
)
def test_a_bad_file_is_told_with_its_line(tmp_path, name, content, words):
    (tmp_path / name).write_text(content)
    with pytest.raises(PreflightError, match=words):
        read_prompts(str(tmp_path / name))


def test_what_is_not_there_is_told_and_bytes_that_are_no_text(tmp_path):
    with pytest.raises(PreflightError, match="does not exist; a prompt itself goes into 'prompts'"):
        read_prompts("a cat on a mat")
    (tmp_path / "p.txt").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(PreflightError, match="no UTF-8"):
        read_prompts(str(tmp_path / "p.txt"))
    (tmp_path / "empty").mkdir()
    with pytest.raises(PreflightError, match="holds no prompt"):
        read_prompts(str(tmp_path / "empty"))


def test_each_prompt_has_its_own_seed_or_that_of_the_run_and_its_takes_the_next_ones():
    made = requests([Prompt("a"), Prompt("b", 40)], seed=7, videos_per_prompt=2)
    assert [(row["index"], row["prompt"], row["seed"]) for row in made] == [
        (0, "a", 7),
        (1, "a", 8),
        (2, "b", 40),
        (3, "b", 41),
    ]
    with pytest.raises(ValueError, match="seed"):
        requests([Prompt("a")], seed=2**63 - 1, videos_per_prompt=2)


def test_batches_are_tables_of_so_many_requests_and_are_the_same_again(tmp_path):
    wanted = requests([Prompt(letter) for letter in "abcde"], 0, 1)
    tables = write_batches(wanted, str(tmp_path), 2)
    assert [storage.read_table(table).num_rows for table in tables] == [2, 2, 1]
    assert [row for table in tables for row in storage.read_table(table).to_pylist()] == wanted
    assert write_batches([*wanted, *requests([Prompt("f")], 0, 1)], str(tmp_path), 2)[:2] == tables[:2]


@pytest.mark.parametrize(
    "prompt, expected",
    [
        ("A cat — on a MAT!", "a-cat-on-a-mat"),
        ("../../etc/passwd", "etc-passwd"),
        ("Crème brûlée", "creme-brulee"),
        ("一只猫", ""),
        ("word " * 30, "word-word-word-word-word-word-word-word"),
    ],
)
def test_a_slug_is_safe_in_paths_and_addresses(prompt, expected):
    assert slug(prompt) == expected


def test_a_videos_name_has_its_place_its_words_and_its_seed():
    assert video_name(3, "A cat", 42) == "00003-a-cat-42.mp4"
    assert video_name(3, "猫", 42) == "00003-42.mp4"
