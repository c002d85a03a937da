"""One volume for all tests here, since it takes seconds to make."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from .volume import Volume, glusterfs_volume, missing


@pytest.fixture(scope="session")
def session_volume(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Volume]:
    if reason := missing():
        pytest.skip(f"a real cluster file system {reason}")
    with glusterfs_volume(tmp_path_factory.mktemp("glusterfs")) as volume:
        yield volume


@pytest.fixture
def volume(session_volume: Volume) -> Volume:
    """A volume that both hosts reach."""
    session_volume.wait_until_reached()
    return session_volume
