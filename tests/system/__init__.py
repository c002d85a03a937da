"""What each system does in its own way, tested."""
