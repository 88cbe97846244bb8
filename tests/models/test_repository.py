from __future__ import annotations

from pathlib import Path

import pytest

from foresight.models.errors import StackError
from foresight.models.repository import Folder, HubRepository, locate


def test_a_stack_folder_comes_before_the_hub(tmp_path: Path) -> None:
    (tmp_path / "owner" / "name").mkdir(parents=True)
    assert locate("owner/name", tmp_path).repository == Folder(tmp_path / "owner" / "name")


@pytest.mark.parametrize(
    ("entry", "repository", "file"),
    [
        ("Qwen/Qwen2.5-VL-7B-Instruct", "Qwen/Qwen2.5-VL-7B-Instruct", None),
        ("Lightricks/LTX-Video/ltxv.safetensors", "Lightricks/LTX-Video", "ltxv.safetensors"),
    ],
)
def test_hub_ids_may_name_a_file(entry: str, repository: str, file: str | None, tmp_path: Path) -> None:
    location = locate(entry, tmp_path)
    assert (location.repository, location.file) == (HubRepository(repository), file)


@pytest.mark.parametrize("entry", ["vlm", "/nowhere/at/all", "../vlm", "a/b/c"])
def test_refuses_what_is_nowhere(entry: str, tmp_path: Path) -> None:
    with pytest.raises(StackError, match="must be a folder there, a path or a hub id"):
        locate(entry, tmp_path)


def test_a_hub_that_cannot_be_reached_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import huggingface_hub.constants

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    repository = HubRepository("owner/name")
    with pytest.raises(
        StackError, match=r"owner/name: cannot fetch config.json \(.*\); a stack.json"
    ) as caught:
        repository.find("config.json")
    assert "\n" not in str(caught.value)
    assert repository.find("model.safetensors.index.json", optional=True) is None
