"""The version, where everything can import it without the front door."""

__version__ = "0.1.0"
