"""Compiling an adapter for where it will run; knows nothing of serving."""

from foresight.export.errors import ExportError
from foresight.export.options import ExportOptions

__all__ = ["ExportError", "ExportOptions"]
