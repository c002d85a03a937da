"""What others can know of a holder: the record in the lock file, and what the kernel lists."""
