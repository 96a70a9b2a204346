"""One module a framework. None is imported by ``import fastprio``."""
