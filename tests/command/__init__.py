"""The command line, through the installed command."""
