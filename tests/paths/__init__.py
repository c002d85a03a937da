"""From a path to the two inodes, tested."""
