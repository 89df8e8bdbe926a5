import io
import itertools
import os
import shutil
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest

from media.video import BadSource, Shown, Video, open_video
from tests.media.made_video import TICKS, add_stream, encode, even, number_of, packets, picture, stamped


def seen(path: Path) -> tuple[list[Shown], Video]:
    with open_video(path) as video:
        pictures = list(video.shown())
        video.check_whole()
    return pictures, video


def numbers(pictures: list[Shown]) -> list[int]:
    return [number_of(shown.frame) for shown in pictures]


def duration(pictures: list[Shown]) -> float:
    return pictures[-1].end_s - pictures[0].time_s


EVERY_KIND = [
    ("a.mp4", "libx264", {}),
    ("a.mov", "mjpeg", {}),
    ("a.mkv", "libx264", {}),
    ("a.webm", "libvpx", {}),
    ("a.avi", "mpeg4", {"bf": "2"}),
    ("b.avi", "libx264", {"ticks": 30}),
    ("c.avi", "mpeg2video", {"bf": "2"}),
    ("a.mpg", "mpeg2video", {"bf": "2"}),
    ("a.ts", "libx264", {}),
    ("a.flv", "libx264", {}),
    ("a.wmv", "msmpeg4", {}),
    ("a.ogv", "libvpx", {"ticks": 30}),
    ("a.gif", "gif", {}),
]


@pytest.mark.parametrize(("name", "codec", "options"), EVERY_KIND)
def test_every_picture_is_shown_in_order_and_lasts_until_the_next(tmp_path, name, codec, options):
    fps = 25 if codec == "gif" else 30
    pictures, video = seen(encode(tmp_path / name, even(75, fps), codec, **options))
    assert numbers(pictures) == list(range(75))
    gaps = np.diff([shown.time_s for shown in pictures])
    assert gaps == pytest.approx(np.full(74, 1 / fps), abs=2e-3)
    assert [shown.end_s for shown in pictures[:-1]] == [shown.time_s for shown in pictures[1:]]
    assert duration(pictures) == pytest.approx(75 / fps, abs=0.02)
    assert video.fps == pytest.approx(fps, rel=2e-3)
    assert pictures[-1].segment == 0


@pytest.mark.parametrize(("name", "codec", "options"), EVERY_KIND)
def test_pictures_from_a_time_on_are_the_same_pictures(tmp_path, name, codec, options):
    fps = 25 if codec == "gif" else 30
    path = encode(tmp_path / name, even(75, fps), codec, **options)
    with open_video(path) as video:
        whole = {number_of(shown.frame): shown.time_s for shown in video.shown()}
        for number in (0, 20, 44, 74):
            part = {number_of(shown.frame): shown.time_s for shown in video.shown(from_s=whole[number])}
            assert next(iter(part)) <= number
            assert {n: t for n, t in part.items() if n >= number} == {
                n: pytest.approx(t, abs=1e-6) for n, t in whole.items() if n >= number
            }


@pytest.mark.parametrize(("name", "codec", "options"), [k for k in EVERY_KIND if k[0] not in ("a.mpg", "a.ts")])
@pytest.mark.parametrize("share", [0.5, 0.6])
def test_a_file_that_lost_its_end_is_truncated(tmp_path, name, codec, options, share):
    path = encode(tmp_path / name, even(100, 25 if codec == "gif" else 30), codec, fast_start=True, **options)
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * share)])
    with pytest.raises(BadSource, match="truncated"):
        seen(path)


def test_a_transport_stream_promises_nothing(tmp_path):
    path = encode(tmp_path / "a.ts", even(90))
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2])
    assert 20 < len(seen(path)[0]) < 80


def test_a_file_with_a_rotten_middle_is_truncated(tmp_path):
    path = encode(tmp_path / "a.mp4", even(60), "mjpeg")
    content = bytearray(path.read_bytes())
    start = content.index(b"\xff\xd8")
    content[start : start + len(content) // 4] = bytes(len(content) // 4)
    path.write_bytes(content)
    with pytest.raises(BadSource, match=r"truncated: \d+ of \d+ pictures could not be decoded|truncated: .* s could"):
        seen(path)


def test_sound_that_goes_on_is_no_loss_of_pictures(tmp_path):
    path = tmp_path / "a.flv"
    with av.open(str(path), "w") as container:
        stream = add_stream(container, "libx264")
        sound = container.add_stream("aac", rate=44100)
        container.mux(packets(stream, even(60)))
        for i in range(0, 4 * 44100, 1024):
            frame = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), format="fltp", layout="mono")
            frame.sample_rate, frame.pts, frame.time_base = 44100, i, Fraction(1, 44100)
            container.mux(sound.encode(frame))
        container.mux(sound.encode())
    pictures, _ = seen(path)
    assert duration(pictures) == pytest.approx(2.0, abs=0.05)


@pytest.mark.parametrize("suffix", [".mp4", ".mkv"])
def test_a_hole_in_time_begins_a_segment(tmp_path, suffix):
    times = even(30) + even(45, start_s=8.0)
    pictures, video = seen(encode(tmp_path / f"a{suffix}", times))
    assert [shown.segment for shown in pictures] == [0] * 30 + [1] * 45
    assert pictures[29].end_s == pytest.approx(1.0, abs=2e-3)
    assert pictures[30].time_s == pytest.approx(8.0, abs=2e-3)
    assert duration(pictures) == pytest.approx(9.5, abs=2e-3)
    assert video.fps == pytest.approx(30, rel=2e-3)


def test_one_picture_a_second_is_no_row_of_holes(tmp_path):
    pictures, _ = seen(encode(tmp_path / "a.mkv", even(8, 1000 / 1001)))
    assert pictures[-1].segment == 0


@pytest.mark.parametrize(("suffix", "codec"), [(".mp4", "libx264"), (".gif", "gif"), (".mkv", "libx264")])
def test_a_slideshow_is_segments_of_one_picture(tmp_path, suffix, codec):
    pictures, _ = seen(encode(tmp_path / f"a{suffix}", [0.0, 5.0, 10.0, 15.0], codec))
    assert [shown.segment for shown in pictures] == [0, 1, 2, 3]
    assert all(shown.end_s - shown.time_s <= 1.0 for shown in pictures[:-1])


@pytest.mark.parametrize("suffix", [".ts", ".mkv"])
def test_a_change_of_picture_size_begins_a_segment(tmp_path, suffix):
    path = tmp_path / f"a{suffix}"
    with av.open(str(path), "w") as container:
        stream = add_stream(container, "mpeg4" if suffix == ".mkv" else "libx264", bf="0")
        made = packets(stream, even(30))
        other = av.CodecContext.create(stream.codec_context.name, "w")
        other.width, other.height, other.pix_fmt, other.time_base = 128, 96, "yuv420p", stream.codec_context.time_base
        other.options, other.framerate = {"bf": "0"}, Fraction(30)
        for packet in made + packets(other, even(20, start_s=1.0), first=30):
            packet.stream = stream
            container.mux(packet)

    pictures, _ = seen(path)
    assert [(shown.frame.width, shown.segment) for shown in pictures] == [(96, 0)] * 30 + [(128, 1)] * 20
    assert pictures[29].end_s == pictures[30].time_s


@pytest.mark.parametrize(
    ("suffix", "codec"), [(".mp4", "libx264"), (".mkv", "libx264"), (".mkv", "libvpx"), (".ts", "libx264")]
)
@pytest.mark.parametrize("number", [5, 45, 89])
def test_one_stamp_far_ahead_is_passed_over(tmp_path, suffix, codec, number):
    pictures, video = seen(stamped(tmp_path / f"a{suffix}", {number: 600.0}, codec=codec))
    assert numbers(pictures) == list(range(90))
    assert video.wrong_stamps == 1
    assert duration(pictures) == pytest.approx(3.0, abs=0.04)
    assert pictures[-1].segment == 0


def test_stamps_a_little_out_of_order_are_put_right(tmp_path):
    pictures, video = seen(stamped(tmp_path / "a.mkv", {20: 21 / 30, 21: 20 / 30, 40: 41 / 30}))
    assert numbers(pictures) == list(range(90))
    assert video.wrong_stamps == 0
    assert all(a.time_s < b.time_s for a, b in itertools.pairwise(pictures))


@pytest.mark.parametrize(("suffix", "codec"), [(".ts", "libx264"), (".mpg", "mpeg2video")])
def test_two_recordings_with_two_clocks_are_an_error_in_words(tmp_path, suffix, codec):
    first, second = (encode(tmp_path / f"{n}{suffix}", even(n), codec) for n in (90, 60))
    path = tmp_path / f"both{suffix}"
    path.write_bytes(first.read_bytes() + second.read_bytes())
    with pytest.raises(BadSource, match=r"time stamps start again at 3\.[0-9] s.*ffmpeg -i"):
        seen(path)


@pytest.mark.parametrize("bf", ["0", "3"])
@pytest.mark.parametrize("suffix", [".mp4", ".mkv"])
def test_the_last_picture_lasts_as_long_as_the_container_says(tmp_path, suffix, bf):
    path = tmp_path / f"a{suffix}"
    with av.open(str(path), "w") as container:
        stream = add_stream(container, "libx264", bf=bf)
        made = packets(stream, even(40))
        for packet in made:
            packet.duration = TICKS // 30
        made[-1].duration = 3 * TICKS
        container.mux(made)
    pictures, _ = seen(path)
    # Stored in another order than shown, the last one's duration is that of the one before.
    assert pictures[-1].end_s == pytest.approx(39 / 30 + 3, abs=0.05)


def test_the_last_delay_of_a_gif_counts(tmp_path):
    path = encode(tmp_path / "a.gif", even(10, 25), "gif")
    content = path.read_bytes()
    at = content.rindex(b"\x21\xf9\x04") + 4
    path.write_bytes(content[:at] + (200).to_bytes(2, "little") + content[at + 2 :])
    pictures, _ = seen(path)
    assert pictures[-1].end_s - pictures[-1].time_s == pytest.approx(2.0)


def test_empty_slots_of_an_avi_are_no_loss(tmp_path):
    times = [i / 30 for i in range(200) if i % 5 < 2]
    pictures, _ = seen(encode(tmp_path / "a.avi", times, "mpeg4"))
    assert numbers(pictures) == list(range(80))
    assert duration(pictures) == pytest.approx(times[-1] + 1 / 30, abs=0.02)


def test_empty_slots_at_the_end_of_an_avi_hold_the_last_picture(tmp_path):
    path = encode(tmp_path / "a.avi", even(60), "mjpeg", ticks=30)
    content = bytearray(path.read_bytes())
    at = [i for i in range(len(content)) if content.startswith(b"00dc", i)]
    chunks = [i for i in at if content[i + 8 : i + 10] == b"\xff\xd8"]
    for i in chunks[40:]:
        size = int.from_bytes(content[i + 4 : i + 8], "little")
        content[i + 4 : i + 8] = bytes(4)
        content[i + 8 : i + 16] = b"JUNK" + (size - 8).to_bytes(4, "little")
    content[content.index(b"idx1") : content.index(b"idx1") + 4] = b"JUNK"
    path.write_bytes(content)
    pictures, _ = seen(path)
    assert numbers(pictures) == list(range(40))
    assert duration(pictures) == pytest.approx(2.0)


def test_pictures_that_an_edit_list_hides_are_not_shown(tmp_path):
    path = tmp_path / "a.mp4"
    with av.open(str(path), "w") as container:
        stream = add_stream(container, "libx264", bf="2")
        for packet in packets(stream, even(90, start_s=-1.2)):
            container.mux(packet)
    pictures, _ = seen(path)
    assert numbers(pictures) == list(range(36, 90))
    assert duration(pictures) == pytest.approx(1.8, abs=0.01)


def test_a_cover_is_passed_over(tmp_path):
    path = tmp_path / "a.mp4"
    with av.open(str(path), "w") as container:
        cover = add_stream(container, "mjpeg", width=640, height=480)
        cover.disposition = av.stream.Disposition.attached_pic
        stream = add_stream(container, "libx264")
        container.mux(packets(cover, [0.0]))
        container.mux(packets(stream, even(30)))
    assert numbers(seen(path)[0]) == list(range(30))


@pytest.mark.parametrize("default", [0, 1, None])
def test_the_default_stream_is_shown_else_the_largest(tmp_path, default):
    path = tmp_path / "a.mkv"
    with av.open(str(path), "w") as container:
        streams = [add_stream(container, "libx264", width=w, height=h) for w, h in ((96, 64), (160, 96))]
        for i, stream in enumerate(streams):
            stream.disposition = av.stream.Disposition.default if i == default else av.stream.Disposition(0)
        made = [packet for stream in streams for packet in packets(stream, even(30))]
        for packet in sorted(made, key=lambda p: p.dts):
            container.mux(packet)
    pictures, _ = seen(path)
    assert len(pictures) == 30
    assert pictures[0].frame.width == (96 if default == 0 else 160)


@pytest.mark.parametrize("name", ["img%d.mp4", "a::b.mp4", "a#b?c.mp4", "file:x.mp4", "-i.mp4", "concat:a|b.mp4"])
def test_a_name_is_only_a_name(tmp_path, name):
    plain = encode(tmp_path / "plain.mp4", even(10))
    shutil.copy(plain, tmp_path / name)
    assert numbers(seen(tmp_path / name)[0]) == list(range(10))


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("a.mp4", "ffconcat version 1.0\nfile {video}\n"),
        ("a.ts", "import {{ readFile }} from 'fs';\nexport const rate: number = 47;\n"),
        ("a.ts", "#EXTM3U\n#EXT-X-TARGETDURATION:4\n#EXTINF:4,\n{video}\n#EXT-X-ENDLIST\n"),
        ("a.mp4", "v=0\no=- 0 0 IN IP4 127.0.0.1\nc=IN IP4 127.0.0.1\nt=0 0\nm=video 5004 RTP/AVP 96\n"),
        ("a.mp4", '<?xml version="1.0"?><MPD xmlns="urn:mpeg:dash:schema:mpd:2011"></MPD>'),
        ("a.mp4", '<svg xmlns="http://www.w3.org/2000/svg" width="9" height="9"/>'),
    ],
)
def test_a_text_is_no_video_and_is_not_followed(tmp_path, name, text):
    video = encode(tmp_path / "video.mp4", even(10))
    (tmp_path / name).write_text(text.format(video=video))
    with pytest.raises(BadSource, match="cannot be decoded: it is a text"):
        seen(tmp_path / name)


def test_an_empty_file_and_one_of_sound_say_what_they_lack(tmp_path):
    (tmp_path / "empty.mp4").touch()
    with pytest.raises(BadSource, match="the file is empty"), open_video(tmp_path / "empty.mp4"):
        pass
    with av.open(str(tmp_path / "sound.mp4"), "w") as container:
        stream = container.add_stream("aac", rate=48000)
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), format="fltp", layout="mono")
        frame.sample_rate = 48000
        container.mux(stream.encode(frame))
        container.mux(stream.encode())
    with pytest.raises(BadSource, match="no video stream"), open_video(tmp_path / "sound.mp4"):
        pass


def test_bytes_that_are_no_video_and_a_pipe_are_bad_sources(tmp_path):
    (tmp_path / "a.mp4").write_bytes(np.random.default_rng(0).bytes(5000))
    os.mkfifo(tmp_path / "b.mp4")
    for name, words in (("a.mp4", "no video file"), ("b.mp4", "no ordinary file")):
        with pytest.raises(BadSource, match=words), open_video(tmp_path / name):
            pass
    with pytest.raises(FileNotFoundError), open_video(tmp_path / "c.mp4"):
        pass


def test_a_codec_that_nobody_knows_is_an_error(tmp_path):
    path = encode(tmp_path / "a.mp4", even(10))
    path.write_bytes(path.read_bytes().replace(b"avc1", b"zzzz"))
    with pytest.raises(BadSource, match="codec is unknown"), open_video(path):
        pass


def test_a_failing_disk_is_no_bad_source(tmp_path, monkeypatch):
    path = encode(tmp_path / "a.mp4", even(90))

    class Failing(io.FileIO):
        def read(self, size: int = -1) -> bytes:
            raise OSError(5, "Input/output error")

    monkeypatch.setattr(Path, "open", lambda path, mode: Failing(path))
    with pytest.raises(OSError, match="Input/output error"), open_video(path):
        pass


def test_pictures_can_be_taken_again(tmp_path):
    with open_video(encode(tmp_path / "a.mkv", even(30))) as video:
        for _ in range(2):
            assert numbers(list(video.shown())) == list(range(30))
            assert video.count == 30


def test_threads_change_nothing(tmp_path):
    path = encode(tmp_path / "a.mp4", even(60))
    with open_video(path, threads=3) as video:
        assert [s.time_s for s in video.shown()] == [s.time_s for s in seen(path)[0]]


def test_pictures_are_those_that_were_drawn(tmp_path):
    """The tests above stand on reading a number off a decoded picture."""
    frame = av.VideoFrame.from_ndarray(picture(173), "rgb24")
    assert number_of(frame) == 173


def test_a_second_recording_that_no_decoder_reaches_is_not_left_out_silently(tmp_path):
    path = encode(tmp_path / "a.flv", even(60))
    path.write_bytes(2 * path.read_bytes())
    with pytest.raises(BadSource, match="50% of the file follows"):
        seen(path)
