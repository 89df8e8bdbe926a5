"""The wording of VideoAlign: read from its file as data, checked by its hash."""

import hashlib

import pytest

from models.scoring.videoalign_prompt import TEMPLATE_SHA256, read_template
from tests.models.scoring.tiny_videoalign import WORDING, WORDING_SHA256

NAME = "DETAILED_PROMPT_WITH_SPECIAL_TOKEN"


def test_the_wording_is_read_as_data_and_never_run(tmp_path) -> None:
    file = tmp_path / "prompt_template.py"
    file.write_text(f"import nothing_of_this_name\n{NAME} = {WORDING!r}\nraise SystemExit\n")
    assert read_template(file, sha256=WORDING_SHA256) == WORDING


def test_another_wording_is_refused_with_its_hash(tmp_path) -> None:
    file = tmp_path / "prompt_template.py"
    file.write_text(f"{NAME} = {WORDING + ' '!r}\n")
    with pytest.raises(ValueError, match=hashlib.sha256((WORDING + " ").encode()).hexdigest()):
        read_template(file, sha256=WORDING_SHA256)
    with pytest.raises(ValueError, match=TEMPLATE_SHA256):  # without a hash, it is the published one
        read_template(file)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("OTHER = 1", "to a text once"),
        (f"{NAME} = 7", "to a text once"),
        (f"{NAME} = open('x')", "constants"),
        ("(", "constants"),
    ],
)
def test_files_without_the_wording_are_refused(tmp_path, content, message) -> None:
    (tmp_path / "prompt_template.py").write_text(content)
    with pytest.raises(ValueError, match=message):
        read_template(tmp_path / "prompt_template.py")


def test_a_wording_without_its_tokens_is_refused_even_if_its_hash_is_right(tmp_path) -> None:
    text = WORDING.replace("<|MQ_reward|>", "")
    (tmp_path / "prompt_template.py").write_text(f"{NAME} = {text!r}\n")
    with pytest.raises(ValueError, match="MQ_reward"):
        read_template(tmp_path / "prompt_template.py", sha256=hashlib.sha256(text.encode()).hexdigest())


def test_a_missing_file_says_where_it_comes_from(tmp_path) -> None:
    with pytest.raises(FileNotFoundError, match="github"):
        read_template(tmp_path / "prompt_template.py")
