"""Two hosts and a real distributed file system. Run with ``--cluster``."""
