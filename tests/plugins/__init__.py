"""The plugins, in the frontends that they are for."""
