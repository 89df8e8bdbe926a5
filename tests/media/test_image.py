"""Image files are known by their content, read whole and as a viewer sees them, or refused in words."""

import io
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageCms

from media.image import is_image, read_image
from media.source import BadSource
from tests.media.high_range import DIFFUSE_WHITE, HLG, PQ, TO_BT2020, hlg_codes, linear, pq_codes, write_high_range

KINDS = ["JPEG", "PNG", "WEBP", "BMP", "TIFF", "AVIF"]
WHOLE_CODES = {
    "progressive": ("JPEG", {"progressive": True}),
    "lossless": ("WEBP", {"lossless": True}),
    "lzw": ("TIFF", {"compression": "tiff_lzw"}),
    "deflate": ("TIFF", {"compression": "tiff_adobe_deflate"}),
    "jpeg in tiff": ("TIFF", {"compression": "jpeg"}),
    **{kind: (kind, {}) for kind in KINDS},
}


def photograph(height: int = 120, width: int = 160) -> Image.Image:
    """Smooth colours with noise, so that every part of a file of it holds something."""
    rows, columns = np.mgrid[:height, :width]
    smooth = np.stack([rows, columns, rows + columns], -1) * 0.8 + 20
    return Image.fromarray((smooth + np.random.default_rng(0).normal(0, 6, smooth.shape)).clip(0, 255).astype(np.uint8))


def saved(image: Image.Image, kind: str, **options: object) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def read(data: bytes) -> np.ndarray:
    return read_image(io.BytesIO(data))


@pytest.mark.parametrize("code", WHOLE_CODES)
def test_an_image_is_known_and_read_whatever_its_name(tmp_path: Path, code: str) -> None:
    kind, options = WHOLE_CODES[code]
    path = tmp_path / "picture.mp4"
    path.write_bytes(saved(photograph(), kind, **options))
    assert is_image(path.read_bytes()[:64])
    picture = read_image(path)
    assert picture.shape == (120, 160, 3) and picture.dtype == np.uint8
    assert np.abs(picture.astype(float) - np.asarray(photograph())).mean() < 8


@pytest.mark.parametrize("part", [0.02, 0.3, 0.5, 0.9])
@pytest.mark.parametrize("code", WHOLE_CODES)
def test_an_image_of_which_a_part_is_missing_is_an_error(code: str, part: float) -> None:
    kind, options = WHOLE_CODES[code]
    data = saved(photograph(), kind, **options)
    with pytest.raises(BadSource, match="truncated"):
        read(data[: max(40, int(len(data) * part))])


@pytest.mark.parametrize("code", WHOLE_CODES)
def test_a_damaged_image_is_read_or_refused_in_words(code: str) -> None:
    """Bytes changed at random places never end in an error of another kind."""
    kind, options = WHOLE_CODES[code]
    data, random = saved(photograph(30, 40), kind, **options), np.random.default_rng(0)
    refused = 0
    for _ in range(120):
        damaged = bytearray(data)
        for at in random.integers(0, random.choice([60, 400, len(data)]).clip(max=len(data)), 3):
            damaged[at] = random.integers(256)
        try:
            assert read(bytes(damaged)).dtype == np.uint8
        except BadSource as problem:
            refused += bool(str(problem))
    assert refused > 0


@pytest.mark.parametrize("options", [{}, {"progressive": True}])
def test_a_jpeg_without_its_end_is_an_error(options: dict[str, bool]) -> None:
    with pytest.raises(BadSource, match="truncated"):
        read(saved(photograph(), "JPEG", **options)[:-2])


@pytest.mark.parametrize(
    "content",
    [
        b"<svg xmlns='http://www.w3.org/2000/svg'/>",
        b"file 'a.mp4'\n",
        b"%PDF-1.7\n",
        b"BM, a text",
        bytes(200),
        b"\xff",
    ],
)
def test_what_is_no_image_is_refused_whatever_its_name(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "picture.png"
    path.write_bytes(content)
    assert not is_image(content[:64])
    with pytest.raises(BadSource, match="no known format"):
        read_image(path)


def test_an_empty_file_and_a_missing_one_are_two_things(tmp_path: Path) -> None:
    """A missing file is the store's fault, which may pass; an empty one stays empty."""
    (tmp_path / "empty.png").touch()
    with pytest.raises(BadSource, match="empty"):
        read_image(tmp_path / "empty.png")
    with pytest.raises(FileNotFoundError):
        read_image(tmp_path / "missing.png")


@pytest.mark.parametrize("kind", ["GIF", "PNG", "WEBP", "AVIF"])
def test_an_animation_is_no_image(kind: str) -> None:
    first, *others = (photograph(32, 48 + i).resize((48, 32)) for i in range(4))
    with pytest.raises(BadSource, match=f"animated {kind} of 4 pictures"):
        read(saved(first, kind, save_all=True, append_images=others, duration=100))


def test_animations_that_videos_can_be_read_from_are_left_to_them() -> None:
    first, *others = (photograph(32, 48 + i).resize((48, 32)) for i in range(4))
    for kind, image in (("GIF", False), ("PNG", False), ("WEBP", True), ("AVIF", True)):
        assert is_image(saved(first, kind, save_all=True, append_images=others, duration=100)[:512]) == image


@pytest.mark.parametrize("brand", [b"heic", b"heix", b"mif1"])
def test_heic_is_refused_by_name_where_nothing_decodes_it(brand: bytes) -> None:
    data = struct.pack(">I4s4sI4s4s", 24, b"ftyp", brand, 0, b"mif1", b"heic") + bytes(400)
    assert is_image(data[:64])
    with pytest.raises(BadSource, match="HEIC"):
        read(data)


def test_videos_are_no_images() -> None:
    for brand in (b"isom", b"qt  ", b"mp42", b"M4V "):
        assert not is_image(struct.pack(">I4s4sI4s4s", 24, b"ftyp", brand, 0, b"isom", b"avc1") + bytes(64))
    assert not is_image(b"RIFF\0\0\0\0AVI LIST" + bytes(64))


def test_print_densities_change_no_pixel() -> None:
    plain = read(saved(photograph(), "JPEG"))
    for dpi in ((300, 1), (1, 300), (72, 144)):
        assert (read(saved(photograph(), "JPEG", dpi=dpi)) == plain).all()


def test_sixteen_bits_keep_their_whole_range() -> None:
    ramp = np.linspace(0, 65535, 256).astype(np.uint16)[None].repeat(40, 0)
    for kind in ("PNG", "TIFF"):
        picture = read(saved(Image.fromarray(ramp), kind))
        assert np.abs(picture[..., 0].astype(int) - ramp // 257).max() <= 1
        assert (picture[..., 0] == picture[..., 2]).all()


def test_channels_of_32_bits_are_refused() -> None:
    for kind in (np.float32, np.int32):
        with pytest.raises(BadSource, match="32 bits"):
            read(saved(Image.fromarray(np.ones((40, 40), kind)), "TIFF"))


def test_grey_palette_and_print_colours_are_read() -> None:
    image = photograph()
    grey = read(saved(image.convert("L"), "PNG"))
    assert (grey == np.asarray(image.convert("L"))[..., None]).all()
    palette = image.quantize(200)
    assert (read(saved(palette, "PNG")) == np.asarray(palette.convert("RGB"))).all()
    black_and_white = read(saved(image.convert("1"), "PNG"))
    assert set(np.unique(black_and_white)) == {0, 255}
    cyan = read(saved(Image.new("CMYK", (32, 32), (255, 0, 0, 0)), "JPEG"))
    assert cyan[..., 0].max() < 10 and cyan[..., 1:].min() > 245


def test_a_see_through_image_lies_on_white() -> None:
    pixels = np.zeros((30, 90, 4), np.uint8)
    pixels[:, 30:60] = (200, 0, 0, 128)
    pixels[:, 60:] = (200, 0, 0, 255)
    for image in (Image.fromarray(pixels), Image.fromarray(pixels).quantize(256)):
        picture = read(saved(image, "PNG")).astype(int)
        assert (picture[:, :30] == 255).all()
        assert np.abs(picture[:, 30:60] - (227, 127, 127)).max() <= 2
        assert np.abs(picture[:, 60:] - (200, 0, 0)).max() <= 1


def test_a_decompression_bomb_is_refused_before_its_pixels_are_made() -> None:
    """A PNG whose header says 100,000 x 100,000 would take 30 GB."""
    small = saved(Image.new("L", (8, 8)), "PNG")
    header = struct.pack(">II", 100_000, 100_000) + small[24:29]
    bomb = small[:16] + header + struct.pack(">I", zlib.crc32(b"IHDR" + header)) + small[33:]
    with pytest.raises(BadSource, match="too large"):
        read(bomb)


def test_a_file_of_several_pages_shows_its_first() -> None:
    pages = [Image.new("RGB", (40, 30), colour) for colour in ((200, 0, 0), (0, 200, 0))]
    for kind in ("TIFF", "MPO"):
        picture = read(saved(pages[0], kind, save_all=True, append_images=pages[1:]))
        assert np.abs(picture.astype(int) - (200, 0, 0)).max() < 4


def test_colours_of_a_profile_become_srgb() -> None:
    """A profile of light, not of codes: the grey that stores a fifth of white's light is 124 of 255 in sRGB."""
    linear = matrix_profile(gamma=1.0)
    file = saved(Image.new("RGB", (16, 16), (51, 51, 51)), "PNG", icc_profile=linear)
    assert np.abs(read(file).astype(int) - 124).max() <= 1


def test_srgb_and_broken_profiles_change_no_pixel() -> None:
    plain = np.asarray(photograph())
    srgb = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    for profile in (srgb, b"no profile", srgb[: len(srgb) // 2]):
        assert (read(saved(photograph(), "PNG", icc_profile=profile)) == plain).all()


@pytest.mark.parametrize("transfer", [PQ, HLG])
@pytest.mark.parametrize("kind", ["AVIF", "PNG"])
def test_images_of_high_dynamic_range_look_like_the_standard_take(tmp_path: Path, kind: str, transfer: int) -> None:
    bars = np.zeros((64, 96, 3), np.uint8)
    bars[:, :48], bars[:, 48:] = (190, 60, 40), (60, 90, 180)
    path = tmp_path / "high.avif"
    if kind == "AVIF":
        write_high_range(path, bars, transfer, "libsvtav1")
    else:
        light = linear(bars) @ TO_BT2020.T * DIFFUSE_WHITE
        codes = pq_codes(light) if transfer == PQ else hlg_codes(light)
        plain = saved(Image.fromarray((codes / 257).round().astype(np.uint8)), "PNG")
        tag = b"cICP" + bytes([9, transfer, 0, 1])  # PNG, third edition, 11.3.2.6
        path.write_bytes(plain[:33] + struct.pack(">I", 4) + tag + struct.pack(">I", zlib.crc32(tag)) + plain[33:])
    picture = read_image(path).astype(int)  # 8 bits of PQ are steps of up to 6 in sRGB; read as sRGB they are 70 off
    assert np.abs(picture[32, 20] - (190, 60, 40)).max() < 16
    assert np.abs(picture[32, 76] - (60, 90, 180)).max() < 16


def matrix_profile(gamma: float) -> bytes:
    """An ICC profile (version 2, ICC.1:2001-04) of sRGB's primaries, adapted to D50, and one power for each channel."""

    def fixed(*numbers: float) -> bytes:
        return struct.pack(f">{len(numbers)}i", *(round(number * 65536) for number in numbers))

    d50 = (0.9642, 1.0, 0.8249)
    columns = {b"rXYZ": (0.4361, 0.2225, 0.0139), b"gXYZ": (0.3851, 0.7169, 0.0971), b"bXYZ": (0.1431, 0.0606, 0.7139)}
    name = b"test\0"
    tags = {b"desc": b"desc\0\0\0\0" + struct.pack(">I", len(name)) + name + bytes(78), b"cprt": b"text\0\0\0\0none\0"}
    tags |= {key: b"XYZ \0\0\0\0" + fixed(*column) for key, column in {**columns, b"wtpt": d50}.items()}
    tags |= {key: b"curv\0\0\0\0" + struct.pack(">IH", 1, round(gamma * 256)) for key in (b"rTRC", b"gTRC", b"bTRC")}
    place, table, body = 132 + 12 * len(tags), struct.pack(">I", len(tags)), b""
    for key, content in tags.items():
        padded = content + bytes(-len(content) % 4)
        table += struct.pack(">4sII", key, place + len(body), len(content))
        body += padded
    header = (
        struct.pack(
            ">I4sI4s4s4s12s4s", place + len(body), b"test", 0x02200000, b"mntr", b"RGB ", b"XYZ ", bytes(12), b"acsp"
        )
        + bytes(28)
        + fixed(*d50)
        + bytes(48)
    )
    return header + table + body
