"""An in-tree backend: setuptools, and a step of our own before each wheel, under one lock."""

from pathlib import Path

from source_tree_lock import build_meta, source_tree_lock
from source_tree_lock.build_meta import *  # all other hooks


@source_tree_lock()
def build_wheel(wheel_directory, config_settings=None, metadata_directory=None):
    Path("answer.py").write_text("ANSWER = 42\n")
    return build_meta.build_wheel(wheel_directory, config_settings, metadata_directory)
