"""Triton kernels, their plain references, and the dispatch between them."""

from foresight.kernels.dispatch import implementation
from foresight.kernels.launch import (
    KERNELS,
    Launch,
    LaunchTable,
    find_launch,
    find_table,
    read_table,
    table_path,
    using_table,
)

__all__ = [
    "KERNELS",
    "Launch",
    "LaunchTable",
    "find_launch",
    "find_table",
    "implementation",
    "read_table",
    "table_path",
    "using_table",
]
