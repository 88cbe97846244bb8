from __future__ import annotations

from pathlib import Path

import pytest

from foresight.models.errors import StackError
from foresight.models.repository import Folder, HubRepository, locate


def test_a_stack_folder_comes_before_the_hub(tmp_path: Path) -> None:
    (tmp_path / "owner" / "name").mkdir(parents=True)
    assert locate("owner/name", tmp_path).repository == Folder(tmp_path / "owner" / "name")


@pytest.mark.parametrize(
    ("entry", "repository", "revision", "file"),
    [
        ("Qwen/Qwen2.5-VL-7B-Instruct", "Qwen/Qwen2.5-VL-7B-Instruct", None, None),
        ("Lightricks/LTX-Video/ltxv.safetensors", "Lightricks/LTX-Video", None, "ltxv.safetensors"),
        ("timm/vit_large_patch14_dinov2.lvd142m@v1.0", "timm/vit_large_patch14_dinov2.lvd142m", "v1.0", None),
        ("Lightricks/LTX-Video@main/a/b.safetensors", "Lightricks/LTX-Video", "main", "a/b.safetensors"),
    ],
)
def test_hub_ids_may_name_a_revision_and_a_file(
    entry: str, repository: str, revision: str | None, file: str | None, tmp_path: Path
) -> None:
    location = locate(entry, tmp_path)
    assert (location.repository, location.file) == (HubRepository(repository, revision), file)
    assert str(location) == entry


@pytest.mark.parametrize("entry", ["vlm", "/nowhere/at/all", "../vlm", "a/b/c", "a/b@", "a/b@..", "a@b/c"])
def test_refuses_what_is_nowhere(entry: str, tmp_path: Path) -> None:
    with pytest.raises(StackError, match="must be a folder there, a path or a hub id"):
        locate(entry, tmp_path)


@pytest.fixture
def hub_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The hub's local cache, empty, and no hub."""
    import huggingface_hub.constants

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    return tmp_path


def test_a_revision_has_files_of_its_own(hub_cache: Path) -> None:
    folder = hub_cache / "models--owner--name"
    for revision, commit in (("main", "a" * 40), ("v1", "b" * 40)):
        (folder / "refs").mkdir(parents=True, exist_ok=True)
        (folder / "refs" / revision).write_text(commit)
        (folder / "snapshots" / commit).mkdir(parents=True)
        (folder / "snapshots" / commit / "config.json").write_text(revision)
    found = {
        revision: HubRepository("owner/name", revision).find("config.json")
        for revision in (None, "v1", "b" * 40)
    }
    texts = {revision: path.read_text() for revision, path in found.items() if path is not None}
    assert texts == {None: "main", "v1": "v1", "b" * 40: "v1"}
    with pytest.raises(StackError, match=r"^owner/name@v2: cannot fetch config.json"):
        HubRepository("owner/name", "v2").find("config.json")


@pytest.mark.usefixtures("hub_cache")
def test_a_hub_that_cannot_be_reached_is_one_line() -> None:
    repository = HubRepository("owner/name")
    with pytest.raises(
        StackError, match=r"owner/name: cannot fetch config.json \(.*\); a stack.json"
    ) as caught:
        repository.find("config.json")
    assert "\n" not in str(caught.value)
    assert repository.find("model.safetensors.index.json", optional=True) is None
