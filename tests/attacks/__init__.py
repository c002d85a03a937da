"""Attacks on the promises, from outside: real processes, real faults, and models of both."""
