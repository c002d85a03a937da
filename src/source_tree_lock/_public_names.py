"""All that the package itself offers."""

from ._holder.holder import Holder
from ._lock import SourceTreeLock, source_tree_lock
from ._paths.digest import cache_digest
from ._paths.lock_file import Digest
from ._paths.tree import AnyPath
from ._wait_report import Wait
from .errors import LockTimeout, LockUnavailable, SourceTreeLockError

__all__ = [
    "AnyPath",
    "Digest",
    "Holder",
    "LockTimeout",
    "LockUnavailable",
    "SourceTreeLock",
    "SourceTreeLockError",
    "Wait",
    "cache_digest",
    "source_tree_lock",
]
