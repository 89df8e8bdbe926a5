from tasks.curation.caption import LITE, caption, describe
from tests.tasks.rows import clip, read, tables


def test_a_template_caption_says_that_it_is_one():
    assert describe(clip())["caption_model"] == LITE == "template-lite"


def test_the_caption_follows_the_scores():
    pan = describe(clip(motion_bg=0.3, motion_fg=0.0))["caption_short"]
    assert pan == "A landscape video with fast camera movement and no subject movement."
    still = describe(clip(motion_bg=0.0, motion_fg=0.1, crop_w=200))["caption_short"]
    assert still == "A portrait video with no camera movement and slow subject movement."


def test_an_image_is_no_video():
    assert describe(clip(duration_s=0.0, motion_bg=None, motion_fg=None))["caption_short"] == "A landscape photograph."


def test_only_kept_clips_are_captioned(tmp_path):
    rejected = clip(clip_id="c1", keep=False, rejected_by=["blur"])
    rows = read(caption.fn(tables(tmp_path, "verdict", [clip(), rejected]))[-1])
    assert [row["caption_model"] for row in rows] == [LITE, None]
