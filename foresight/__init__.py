"""Foresight: a clip goes in, two encoders see it, a small adapter translates, a video decoder paints it again."""

__all__ = ["__version__"]

__version__ = "0.1.0"
