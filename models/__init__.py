"""The frozen towers and the stacks that they form.

Here stand the names that need no torch, so that a command refuses a wrong stack at once; the towers are in
`vlm`, `dino` and `video`, and `stack` loads them.
"""

from foresight.models.errors import StackError
from foresight.models.presets import ARCHITECTURES, STACKS, StackConfig
from foresight.models.sigmas import sigma_schedule
from foresight.models.stack_file import load_config

__all__ = ["ARCHITECTURES", "STACKS", "StackConfig", "StackError", "load_config", "sigma_schedule"]
