"""The name uv gives to the lock file of a source tree: a SeaHash of its canonical path.

uv hashes with the ``seahash`` crate what Rust's ``impl Hash for Path`` feeds a hasher:
the prefix (Windows only), the bytes of each component without separators, then one
64-bit word that tells apart paths whose components run together.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from functools import lru_cache
from pathlib import PurePath, PureWindowsPath

_MASK = 0xFFFFFFFFFFFFFFFF

#: Rust's ``Prefix`` enumeration, in its order, as ``#[derive(Hash)]`` numbers it.
_VERBATIM_UNC = 1
_VERBATIM_DISK = 2


def cache_digest(path: PurePath) -> str:
    r"""uv's digest of a canonical path: 16 hexadecimal digits.

    Args:
        path: a canonical, absolute path; its flavour decides, not the system on which this runs.
            A Windows path means the same with and without the verbatim prefix ``\\?\``,
            because Rust's ``canonicalize`` always adds it.

    Raises:
        ValueError: the path is relative.
    """
    if not path.is_absolute():
        raise ValueError(f"a digest needs an absolute, canonical path, not {str(path)!r}")
    if isinstance(path, PureWindowsPath):
        return windows_digest(str(path))
    return posix_digest(str(path))


@lru_cache(64)  # without it, the digest is a tenth of an entry
def canonical_digest(path: str) -> str:
    """The digest of a canonical path of this system. Called under `guard`, for the cache."""
    return posix_digest(path) if os.sep == "/" else windows_digest(path)


def posix_digest(path: str) -> str:
    """The digest of a canonical POSIX path; one that is not UTF-8 as `os.fsdecode` gives it."""
    encoded = os.fsencode(path) if os.sep == "/" else path.encode("utf-8", "surrogateescape")
    return _digest(b"", [part for part in encoded.split(b"/") if part])


def windows_digest(path: str) -> str:
    """The digest of a canonical Windows path, hashed as the verbatim path that Rust would have."""
    # WTF-8: Rust keeps an unpaired surrogate as the three bytes that UTF-8 would give it.
    verbatim = path.encode("utf-8", "surrogatepass").replace(b"/", b"\\")
    if verbatim.startswith(b"\\\\?\\UNC\\"):
        verbatim = b"\\\\" + verbatim[8:]
    elif verbatim.startswith(b"\\\\?\\"):
        verbatim = verbatim[4:]
    if verbatim.startswith(b"\\\\"):
        server, share, *components = verbatim[2:].split(b"\\")
        prefix = _word(_VERBATIM_UNC) + _word(len(server)) + server + _word(len(share)) + share
    else:
        drive, *components = verbatim.split(b"\\")
        prefix = _word(_VERBATIM_DISK) + drive[:1].upper()
    return _digest(prefix, [part for part in components if part])


def _digest(prefix: bytes, components: Sequence[bytes]) -> str:
    bits = 0
    for component in components:
        bits = (bits + len(component)) & _MASK
        bits = (bits >> 2) | (bits << 62 & _MASK)
    return _sea_hash(prefix + b"".join(components) + _word(bits)).to_bytes(8, "little").hex()


def _word(number: int) -> bytes:
    return number.to_bytes(8, "little")


def _sea_hash(data: bytes) -> int:
    """SeaHash with the four seeds of the ``seahash`` crate, version 4."""
    a, b = 0x16F11FE89B0D677C, 0xB480A793D8E6C86C
    c, d = 0x6FE2E5AAF078EBC9, 0x14F994A4C5259381
    for start in range(0, len(data), 8):
        word = int.from_bytes(data[start : start + 8], "little")
        a, b, c, d = b, c, d, _diffuse(a ^ word)
    return _diffuse(a ^ b ^ c ^ d ^ len(data))


def _diffuse(word: int) -> int:
    word = word * 0x6EED0E9DA4D94A4F & _MASK
    word ^= (word >> 32) >> (word >> 60)
    return word * 0x6EED0E9DA4D94A4F & _MASK
