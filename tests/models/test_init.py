from __future__ import annotations

import subprocess
import sys

import foresight.models


def test_all_names_exist() -> None:
    assert all(hasattr(foresight.models, name) for name in foresight.models.__all__)


def test_configurations_need_no_heavy_library() -> None:
    heavy = "{'torch', 'transformers', 'diffusers', 'timm', 'numpy'}"
    code = f"import sys, foresight.models; print(sorted({heavy} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_towers_need_no_model_library_before_one_is_built() -> None:
    heavy = "{'transformers', 'diffusers', 'timm', 'huggingface_hub'}"
    code = f"import sys, foresight.models.stack; print(sorted({heavy} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
