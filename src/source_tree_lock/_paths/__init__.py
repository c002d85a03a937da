"""From a path to the two inodes that are locked for it: the tree itself, and its lock file."""
