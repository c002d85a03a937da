"""Real projects: built by setuptools and by the backend here, and killed while they are built."""
