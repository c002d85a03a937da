"""Recipes for frontends that have no plugins: the smallest change of each that takes the lock."""
