"""What others can know of a holder, tested."""
