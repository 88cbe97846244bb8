"""The process in which one client's clip or pictures are decoded: limited by the kernel, trusted by nobody.

It reads from stdin and writes messages to stdout: the length of a JSON object (4 bytes, big-endian), the object,
and after {"frames": n} the raw frames. See `foresight.runtime.decoding` for the other side.
"""

from __future__ import annotations

import ctypes
import json
import resource
import struct
import sys
from dataclasses import asdict
from io import BytesIO
from typing import Any, BinaryIO

__all__ = ["main"]

_LENGTH = struct.Struct(">I")
_BATCH_BYTES = 2**25
_MAX_MEMORY = 2**31
# From linux/sched.h and linux/prctl.h.
_NEW_USER_AND_NETWORK, _NO_NEW_PRIVILEGES = 0x10000000 | 0x40000000, 38


def main(arguments: list[str]) -> int:
    """Decode in the way that the first argument says ("clip" or "images"), within the limits of the second."""
    way, limits = arguments[0], json.loads(arguments[1])
    if sys.platform == "linux":
        _leave_network()
    _limit_resources(int(limits.pop("cpu_seconds")))
    output = sys.stdout.buffer
    if way == "images":
        _decode_images(sys.stdin.buffer, output, limits["max_pixels"])
    else:
        _decode_clip(sys.stdin.buffer, output, limits)
    return 0


def _leave_network() -> None:
    # A network namespace of its own has no interface that is up. Kernels that let nobody make one say so in the
    # return value, and the limits below hold all the same.
    libc = ctypes.CDLL(None)
    libc.prctl(_NO_NEW_PRIVILEGES, 1, 0, 0, 0)
    libc.unshare(_NEW_USER_AND_NETWORK)


def _limit_resources(cpu_seconds: int) -> None:
    limits = {
        resource.RLIMIT_AS: _MAX_MEMORY,
        resource.RLIMIT_CPU: cpu_seconds,
        resource.RLIMIT_CORE: 0,
        resource.RLIMIT_FSIZE: 0,
        resource.RLIMIT_NOFILE: 32,
    }
    for kind, value in limits.items():
        hard = resource.getrlimit(kind)[1]
        value = value if hard == resource.RLIM_INFINITY else min(value, hard)
        resource.setrlimit(kind, (value, value))


def _decode_clip(source: BinaryIO, output: BinaryIO, limits: dict[str, Any]) -> None:
    from foresight.media import ClipError, ClipLimits, ClipReader

    content = source.read()
    # The parent takes its spare child only now; from here on nothing new needs to be opened.
    resource.setrlimit(resource.RLIMIT_NOFILE, (16, 16))
    try:
        with ClipReader(content, ClipLimits(**limits), name="clip") as reader:
            info = asdict(reader.info)
            _send(output, {"info": info | {"fps": str(reader.info.fps)}})
            size = max(1, min(8, _BATCH_BYTES // (reader.info.width * reader.info.height * 3)))
            for batch in reader.batches(size):
                _send(output, {"frames": len(batch), "timestamps": batch.timestamps.tolist()})
                output.write(batch.frames.data)
            _send(output, {"end": reader.warning})
    except ClipError as error:
        _send(output, {"error": str(error)})


def _decode_images(source: BinaryIO, output: BinaryIO, max_pixels: int) -> None:
    import numpy as np
    from PIL import Image

    while len(prefix := source.read(_LENGTH.size)) == _LENGTH.size:
        content = source.read(_LENGTH.unpack(prefix)[0])
        try:
            with Image.open(BytesIO(content), formats=("JPEG", "PNG")) as image:
                width, height = image.size
                if width * height > max_pixels:
                    raise ValueError(f"frame of {width}x{height}: exceeds the limit of {max_pixels} pixels")
                frame = np.asarray(image.convert("RGB"))
        except (OSError, ValueError, SyntaxError) as error:
            reason = (
                str(error) if str(error).startswith("frame of") else "frame: is not a JPEG or PNG picture"
            )
            _send(output, {"error": reason})
            continue
        _send(output, {"frames": 1, "timestamps": [0.0], "size": [height, width]})
        output.write(np.ascontiguousarray(frame).data)
        output.flush()


def _send(output: BinaryIO, message: dict[str, Any]) -> None:
    text = json.dumps(message).encode()
    output.write(_LENGTH.pack(len(text)) + text)
    output.flush()


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
