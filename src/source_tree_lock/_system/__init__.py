"""What this system does in its own way. Nothing outside this package asks which system it is.

`posix` and `windows` define the same names; those of this system can be imported from here.
"""

import os
from typing import TYPE_CHECKING

if TYPE_CHECKING or os.name == "posix":
    from .posix import *  # noqa: F403
else:
    from .windows import *  # noqa: F403
