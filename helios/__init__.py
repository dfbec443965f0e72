"""Helios, a laboratory for lottery draws. Public names load on first use, so that `import helios` stays light."""

from importlib import import_module

__version__ = "0.1.0"
