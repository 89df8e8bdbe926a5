import json

import pytest

from flows.settings import config_of, described
from tasks.curation.settings import CurationConfig


def test_every_setting_is_shown_as_set_takes_it(tmp_path):
    shown = [line for line in described(CurationConfig()).splitlines() if not line.startswith(" ")]
    assert "verdict.blur_min=60.0" in shown
    assert "scan.samples_per_s=2.0" in shown
    assert config_of(None, shown) == CurationConfig()


def test_descriptions_stand_below_their_settings():
    lines = described(CurationConfig()).splitlines()
    assert lines[lines.index("verdict.blur_min=60.0") + 1].strip() == "Smallest variance of the Laplacian"


def test_a_run_record_is_taken_for_its_settings(tmp_path):
    config = CurationConfig.model_validate({"verdict": {"blur_min": 80}})
    record, settings = tmp_path / "run.json", tmp_path / "settings.json"
    record.write_text(json.dumps({"status": "complete", "config": config.model_dump(mode="json"), "counts": []}))
    settings.write_text(json.dumps({"verdict": {"blur_min": 80}}))
    assert config_of(record, []) == config_of(settings, []) == config
    assert config_of(record, ["verdict.blur_min=90"]).verdict.blur_min == 90


@pytest.mark.parametrize("wrong", ["blur_min", "blur_min=3", "verdict.blurmin=3", "verdict.blur_min.x=3", "verdict=3"])
def test_what_is_no_setting_is_refused(wrong):
    with pytest.raises(ValueError, match=wrong.partition("=")[0].rpartition(".")[2]):
        config_of(None, ["verdict.blur_min=60", wrong])


@pytest.mark.parametrize("text", ["no JSON", "[1, 2]"])
def test_a_file_without_settings_is_refused_by_name(tmp_path, text):
    (tmp_path / "settings.json").write_text(text)
    with pytest.raises(ValueError, match=r"settings\.json"):
        config_of(tmp_path / "settings.json", [])
