"""What this system does in its own way. Nothing outside this folder asks which system it is.

`posix` and `windows` define the same names; the ones of this system can be imported from here.
"""

import os

if os.name == "posix":
    from .posix import (
        CAN_HAND_DOWN,
        DIRECTORY,
        HAS_QUEUE,
        LINKS,
        PROC,
        RECORD_START,
        SAFE,
        block_signals,
        canonical_path,
        host_name,
        is_alive,
        let_everybody_lock,
        locking_calls,
        read_at,
        refuse_link,
        strangers_may_delete,
        temp_dir,
        write_at,
    )
else:
    from .windows import (
        CAN_HAND_DOWN,
        DIRECTORY,
        HAS_QUEUE,
        LINKS,
        PROC,
        RECORD_START,
        SAFE,
        block_signals,
        canonical_path,
        host_name,
        is_alive,
        let_everybody_lock,
        locking_calls,
        read_at,
        refuse_link,
        strangers_may_delete,
        temp_dir,
        write_at,
    )

__all__ = [
    "CAN_HAND_DOWN",
    "DIRECTORY",
    "HAS_QUEUE",
    "LINKS",
    "PROC",
    "RECORD_START",
    "SAFE",
    "block_signals",
    "canonical_path",
    "host_name",
    "is_alive",
    "let_everybody_lock",
    "locking_calls",
    "read_at",
    "refuse_link",
    "strangers_may_delete",
    "temp_dir",
    "write_at",
]
