"""Around other tools' calls, tested."""
