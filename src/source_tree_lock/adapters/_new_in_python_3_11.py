"""What older Pythons have to get from other distributions."""

import sys

if sys.version_info >= (3, 11):
    from typing import Unpack

    import tomllib
else:
    import tomli as tomllib
    from typing_extensions import Unpack

__all__ = ["Unpack", "tomllib"]
