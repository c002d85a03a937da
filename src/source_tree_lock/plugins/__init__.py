"""Plugins that make tox, PDM and Poetry take the lock; the projects that they build need not change.

Installing this distribution beside the frontend is enough: its entry points do the rest. A plugin
locks what `source_tree_lock.adapters.is_setuptools` names and says in the frontend's own output who
holds a tree that it waits for. ``SOURCE_TREE_LOCK_TIMEOUT`` and ``SOURCE_TREE_LOCK_DIR`` count as
elsewhere, and ``SOURCE_TREE_LOCK_PLUGINS=0`` turns all three plugins off.
"""
