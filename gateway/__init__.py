"""The node: worker and supervisor processes, configuration, admin HTTP and the command line."""

__version__ = "0.1.0"
