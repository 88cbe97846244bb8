"""How the threads of OpenMP, which compute on a CPU, wait for their next piece of work."""

from __future__ import annotations

import os

__all__ = ["wait_briefly"]


def wait_briefly() -> None:
    """Let them look for work for some tens of microseconds and then sleep; call it before torch is imported.

    By default they look for milliseconds, which takes the core from the thread that reads, the one that writes and
    whatever else runs on the machine. Asleep at once, they have to be woken for every operator: on two idle cores nano
    then makes 44 frames a second instead of 56. What the environment says already stays.
    """
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    # Of GNU's OpenMP, which PyTorch's Linux builds bring along.
    os.environ.setdefault("GOMP_SPINCOUNT", "1000")
