"""The frontends' own test suites, with the lock and without it."""
