"""The adapters, by the frontends that they are for."""
