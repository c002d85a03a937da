"""The names of the hooks of a build backend (PEP 517 and PEP 660)."""

HOOK_NAMES = frozenset(
    """
    build_editable build_sdist build_wheel
    get_requires_for_build_editable get_requires_for_build_sdist get_requires_for_build_wheel
    prepare_metadata_for_build_editable prepare_metadata_for_build_wheel
    """.split()
)
