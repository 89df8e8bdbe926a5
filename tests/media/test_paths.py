import os
from pathlib import Path

import pyarrow as pa
import pytest

from media.paths import UnusablePath, fs_of, is_local, path_of_uri, protocol_of, uri_of, uri_of_path

NAMES = [
    "plain.mp4",
    "a::b.mp4",
    "memory::x.mp4",
    "img%d.jpg",
    "%41.jpg",
    "100%.mp4",
    "a#t=3.mp4",
    "a?b&c=d.mp4",
    "two  spaces .mp4",
    "new\nline.mp4",
    "star*[1]{2}.mp4",
    "back\\slash.mp4",
    "zip:x.mp4",
    "concat:a|b.mp4",
    "~home.mp4",
    "日本語 é.mp4",
    "nfd e\u0301.mp4",
    os.fsdecode(b"caf\xe9.mp4"),
    os.fsdecode(b"100% \xff::#\xfe.mp4"),
    os.fsdecode(b"%41\x80.mp4"),
]


@pytest.mark.parametrize("name", NAMES)
def test_every_name_that_a_disk_can_hold_goes_through_a_table_and_opens_the_same_file(tmp_path, name):
    path = os.path.join(tmp_path, name)
    with open(path, "wb") as file:
        file.write(os.fsencode(name))
    (uri,) = pa.array([uri_of_path(path)]).to_pylist()
    assert path_of_uri(uri) == path
    fs, inner = fs_of(uri)
    with fs.open(inner, "rb") as file:
        assert file.read() == os.fsencode(name)
    assert uri_of(fs, inner) == uri


def test_a_name_in_utf_8_stays_a_plain_absolute_path(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert uri_of_path("a::b %41.mp4") == f"{tmp_path}/a::b %41.mp4"
    assert path_of_uri("sub/../a.mp4") == f"{tmp_path}/a.mp4"


def test_a_name_that_is_not_utf_8_is_a_percent_encoded_uri():
    assert uri_of_path("/v/" + os.fsdecode(b"caf\xe9 %.mp4")) == "file:///v/caf%E9%20%25.mp4"


@pytest.mark.parametrize(
    "uri", ["file:///v/a%20b%3A%3Ac.mp4", "FILE:///v/a%20b::c.mp4", "file://localhost/v/a b::c.mp4"]
)
def test_file_uris_are_percent_decoded(uri):
    assert path_of_uri(uri) == "/v/a b::c.mp4" and is_local(uri)


def test_a_tilde_alone_before_a_slash_is_the_home_folder(monkeypatch):
    monkeypatch.setenv("HOME", "/home/somebody")
    assert path_of_uri("~/videos") == "/home/somebody/videos"


def test_a_file_uri_with_a_host_is_refused():
    with pytest.raises(UnusablePath, match="names a host"):
        path_of_uri("file://videos/a.mp4")


@pytest.mark.parametrize("key", ["a::b.mp4", "img%d.jpg", "a#b.mp4", "two words.mp4"])
def test_keys_of_object_stores_are_plain_too(key):
    fs, path = fs_of(f"memory://bucket/{key}")
    fs.pipe_file(path, key.encode())
    assert path.endswith(key)
    assert fs_of(uri_of(fs, path))[0].cat_file(path) == key.encode()
    fs.rm(path)


@pytest.mark.parametrize(
    ("uri", "words"),
    [
        ("zip://a.mp4", "unpack it"),
        ("zip://a.mp4::/v/b.zip", "unpack it"),
        ("tar:///v/b.tar", "unpack it"),
        ("simplecache::s3://bucket/a.mp4", "chained"),
        ("zip://*.mp4::simplecache::s3://bucket/a.zip", "unpack it"),
        ("filecache::zip::s3://bucket/a.zip", "chained"),
        ("simplecache://s3/a.mp4", "names no store of its own"),
        ("nonsense://bucket", "no store is known for nonsense://"),
    ],
)
def test_what_is_no_store_is_refused_in_words(uri, words):
    with pytest.raises(UnusablePath, match=words):
        fs_of(uri)


def test_a_store_whose_package_is_missing_is_refused_with_its_name(monkeypatch):
    from fsspec.registry import known_implementations

    monkeypatch.setitem(known_implementations, "far", {"class": "no_such_package.Far", "err": "Install far-fs"})
    with pytest.raises(UnusablePath, match="Install far-fs"):
        fs_of("far://bucket")


def test_protocols_are_read_in_any_case():
    assert fs_of("MEMORY://bucket/a")[1] == fs_of("memory://bucket/a")[1]


def test_a_local_path_may_hold_a_protocol_further_in(tmp_path):
    inner = Path(tmp_path, "s3:", "bucket")
    assert protocol_of(str(inner)) == protocol_of(f"{tmp_path}/s3://bucket") == "file"
    assert path_of_uri(f"{tmp_path}/s3://bucket") == str(inner)
