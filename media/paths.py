"""Where a file is: local paths and URIs of object stores, and the filesystem behind each.

A local file is named by its plain absolute path. A path is not a pattern and not a chain: ``::``, ``%d``, ``#``, ``*``
and spaces in it are letters like others. A name whose bytes are not UTF-8, which no table can hold as text, is written
as a ``file://`` URI with its bytes percent-encoded (RFC 8089); every other ``file://`` URI is read in the same way.
Everything else is ``protocol://...`` and goes to the filesystem that fsspec has for the protocol.
"""

import os
import re
from typing import Any
from urllib.parse import quote_from_bytes, unquote_to_bytes

from fsspec.implementations.local import LocalFileSystem
from fsspec.registry import filesystem, get_filesystem_class

_PROTOCOL = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*)://")
_CHAIN = re.compile(r"[a-z0-9_]+::(.*::)?[a-z0-9+.-]+://")

# These show the inside of another file or store, which a plain URI cannot name.
_ARCHIVES = {"zip", "tar", "libarchive"}
_WRAPPERS = {
    *("asynclocal", "async_wrapper", "asyncwrapper", "blockcache", "cached", "filecache", "simplecache"),
    *("data", "dir", "generic", "reference"),
}


class UnusablePath(ValueError):
    """A path or URI that names no place where files can be; the message says why, and what can be done."""


def protocol_of(uri: str) -> str:
    """The protocol of a URI, ``file`` for a local path."""
    found = _PROTOCOL.match(uri)
    name = found[1].lower() if found else "file"
    return "file" if name == "local" else name


def uri_of_path(path: str) -> str:
    """How tables name a local file: its absolute path, or a percent-encoded URI where the path is not UTF-8 text.

    ``path`` is as ``os`` functions return it, with bytes that are not UTF-8 as surrogates (PEP 383).
    """
    path = os.path.abspath(path)
    try:
        path.encode()
    except UnicodeEncodeError:
        return "file://" + quote_from_bytes(os.fsencode(path))
    return path


def path_of_uri(uri: str) -> str:
    """The absolute local path that a plain path or ``file://`` URI names, as ``open`` takes it: ``uri_of_path`` undone.

    Raises UnusablePath for a URI of another protocol, for one that names a host, and for a chain of fsspec's.
    """
    if _CHAIN.match(uri):
        raise UnusablePath(f"{uri!r}: chained URIs are not read; give the files' own URI, or ./{uri} for such a folder")
    if protocol_of(uri) != "file":
        raise UnusablePath(f"{uri!r} is no local path")
    if found := _PROTOCOL.match(uri):
        host, slash, rest = uri[found.end() :].partition("/")
        if not slash or host not in ("", "localhost"):
            raise UnusablePath(f"{uri!r} names a host; a file of this machine is file:///folder/name or a plain path")
        return os.path.abspath(os.fsdecode(unquote_to_bytes("/" + rest)))
    return os.path.abspath(os.path.expanduser(uri))


def is_local(uri: str) -> bool:
    """Whether ``path_of_uri`` can open it: a plain path or a ``file://`` URI."""
    return protocol_of(uri) == "file"


def fs_of(uri: str) -> tuple[Any, str]:
    """The fsspec filesystem behind a path or URI, and the path to give it.

    Unlike ``fsspec.core.url_to_fs`` it takes ``::`` as part of a name. Raises UnusablePath for a protocol that fsspec
    does not know, whose package is not installed, or that shows the inside of another file.
    """
    protocol = protocol_of(uri)
    if protocol == "file":
        return filesystem("file"), path_of_uri(uri)
    if protocol in _ARCHIVES:
        raise UnusablePath(f"{uri!r}: files inside an archive are not read; unpack it and give the folder")
    if protocol in _WRAPPERS:
        raise UnusablePath(f"{uri!r}: {protocol}:// names no store of its own; give the files' own URI")
    try:
        store = get_filesystem_class(protocol)
    except ValueError as problem:
        raise UnusablePath(f"{uri!r}: no store is known for {protocol}://") from problem
    except ImportError as problem:
        raise UnusablePath(f"{uri!r}: {protocol}:// needs a package that is not installed: {problem}") from problem
    uri = protocol + uri[len(protocol) :]
    return store(**store._get_kwargs_from_urls(uri)), store._strip_protocol(uri)


def uri_of(fs: Any, path: str) -> str:
    """The URI of ``path`` in ``fs``, as tables name it: what ``fs_of`` takes apart."""
    return uri_of_path(path) if isinstance(fs, LocalFileSystem) else str(fs.unstrip_protocol(path))
