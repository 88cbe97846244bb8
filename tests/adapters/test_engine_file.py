"""Engines on disk: what is written is read back, and everything that is not as written is refused."""

from __future__ import annotations

import hashlib
import json
import struct
import zipfile
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from foresight.adapters import (
    WEIGHTS,
    AdapterConfig,
    EngineBucket,
    EngineError,
    EngineFile,
    EngineManifest,
    EngineParity,
    EngineTarget,
    MemberSource,
    build_adapter,
    is_engine_archive,
    load_engine_adapter,
    read_bare_plan,
    write_engine,
)

CONFIG = AdapterConfig(
    architecture="query",
    vlm_dim=24,
    dino_dim=16,
    hidden_dim=64,
    num_layers=1,
    num_heads=2,
    ff_dim=32,
    num_queries=5,
    output_dim=12,
)
BUCKET = EngineBucket(batch=1, vlm_tokens=24, dino_tokens=16)
NATIVE = b"native code that nobody may run" * 40


@pytest.fixture
def sources(tmp_path: Path) -> list[MemberSource]:
    adapter = build_adapter(CONFIG)
    save_file(dict(adapter.state_dict()), tmp_path / "w")
    (tmp_path / "p").write_bytes(NATIVE)
    return [
        MemberSource(name=WEIGHTS, path=tmp_path / "w", dtype="float32", target=EngineTarget(kind="weights")),
        MemberSource(
            name="cpu.pt2",
            path=tmp_path / "p",
            dtype="float32",
            target=EngineTarget(kind="aoti", device="cpu", architecture="x86_64", bucket=BUCKET),
            parity=EngineParity(max_error=1e-6, bound=1e-4, cases=3),
        ),
    ]


@pytest.fixture
def path(tmp_path: Path, sources: list[MemberSource]) -> Path:
    path = tmp_path / "adapter.engine"
    write_engine(
        path, sources, adapter=CONFIG, stack_fingerprint="nano-1", buckets=[BUCKET], quality={"psnr_db": 21.5}
    )
    return path


def rezip(
    path: Path,
    *,
    content: dict[str, bytes] | None = None,
    change: Callable[[zipfile.ZipInfo], None] | None = None,
) -> None:
    """Write the engine again with other or further members, each passed to `change`."""
    with zipfile.ZipFile(path) as archive:
        members = {info.filename: archive.read(info) for info in archive.infolist()}
    members |= content or {}
    with zipfile.ZipFile(path, "w") as archive:
        for name, data in members.items():
            info = zipfile.ZipInfo(name)
            if change is not None:
                change(info)
            archive.writestr(info, data)


def edit_manifest(path: Path, edit: Callable[[dict[str, Any]], Any]) -> None:
    with zipfile.ZipFile(path) as archive:
        manifest = json.loads(archive.read("manifest.json"))
    edit(manifest)
    rezip(path, content={"manifest.json": json.dumps(manifest).encode()})


def read_all(path: Path, **options: str) -> dict[str, bytes]:
    with EngineFile(path, **options) as engine:
        return {member.name: engine.read(member.name) for member in engine.manifest.members}


def refusal(path: Path, **options: str) -> str:
    with pytest.raises(EngineError) as caught:
        read_all(path, **options)
    message = str(caught.value)
    assert "\n" not in message
    assert str(path) in message
    return message


def test_what_was_written_is_read_back(path: Path, sources: list[MemberSource], tmp_path: Path) -> None:
    with EngineFile(path) as engine:
        assert engine.manifest.adapter == CONFIG
        assert engine.manifest.buckets == (BUCKET,)
        assert engine.manifest.quality == {"psnr_db": 21.5}
        assert engine.manifest.member("cpu.pt2").target == sources[1].target
        assert engine.read("cpu.pt2") == NATIVE
        assert engine.extract("cpu.pt2", tmp_path).read_bytes() == NATIVE
        assert EngineManifest.from_json(engine.manifest.to_json().encode()) == engine.manifest


def test_the_adapter_inside_answers_as_the_one_outside(path: Path, tmp_path: Path) -> None:
    with EngineFile(path) as engine:
        adapter = load_engine_adapter(engine)
    vlm, dino = torch.randn(1, 24, 24), torch.randn(1, 16, 16)
    original = build_adapter(CONFIG)
    from safetensors.torch import load_file

    original.load_state_dict(load_file(tmp_path / "w"))
    torch.testing.assert_close(adapter(vlm, dino), original(vlm, dino), rtol=0, atol=0)


def test_the_same_members_make_the_same_file(path: Path, sources: list[MemberSource], tmp_path: Path) -> None:
    again = tmp_path / "again.engine"
    options: dict[str, Any] = {
        "stack_fingerprint": "nano-1",
        "buckets": [BUCKET],
        "quality": {"psnr_db": 21.5},
    }
    write_engine(again, sources, adapter=CONFIG, **options)
    assert again.read_bytes() == path.read_bytes()


def test_the_manifest_comes_first_and_nothing_is_compressed(path: Path) -> None:
    with zipfile.ZipFile(path) as archive:
        assert archive.namelist()[0] == "manifest.json"
        assert all(info.compress_type == zipfile.ZIP_STORED for info in archive.infolist())


def test_a_member_out_of_tolerance_is_not_written(tmp_path: Path, sources: list[MemberSource]) -> None:
    wrong = MemberSource(
        name="model.onnx",
        path=tmp_path / "p",
        dtype="float32",
        target=EngineTarget(kind="onnx"),
        parity=EngineParity(max_error=1e-3, bound=1e-4, cases=1),
    )
    with pytest.raises(EngineError, match=r"model\.onnx: differs from eager by 0\.001"):
        write_engine(
            tmp_path / "x.engine", [*sources, wrong], adapter=CONFIG, stack_fingerprint="n", buckets=[BUCKET]
        )
    assert not (tmp_path / "x.engine").exists()


def test_a_failed_write_leaves_the_old_engine(path: Path, sources: list[MemberSource]) -> None:
    before, folder = path.read_bytes(), sorted(path.parent.iterdir())
    with pytest.raises(EngineError, match="is listed 2 times"):
        write_engine(path, [*sources, sources[1]], adapter=CONFIG, stack_fingerprint="n", buckets=[BUCKET])
    assert path.read_bytes() == before
    assert sorted(path.parent.iterdir()) == folder


@pytest.mark.parametrize("name", [WEIGHTS, "cpu.pt2"])
def test_one_flipped_byte_in_a_member_is_refused(path: Path, name: str, tmp_path: Path) -> None:
    with zipfile.ZipFile(path) as archive:
        content = archive.read(name)
    data = bytearray(path.read_bytes())
    data[data.index(content) + len(content) // 2] ^= 1
    path.write_bytes(data)
    assert f"member '{name}' is damaged or was changed" in refusal(path)
    with EngineFile(path) as engine, pytest.raises(EngineError, match="sha256"):
        engine.extract(name, tmp_path)
    assert not (tmp_path / name).exists()


def test_every_flipped_byte_outside_the_members_is_refused_or_harmless(path: Path) -> None:
    """Whatever is changed in the zip's own structure, members come back as written or not at all."""
    members = read_all(path)
    original = path.read_bytes()
    start = original.rindex(b"PK\x01\x02")
    for position in [*range(30), *range(start, len(original))]:
        data = bytearray(original)
        data[position] ^= 0xFF
        path.write_bytes(data)
        with suppress(EngineError):
            assert read_all(path) == members


def test_a_cut_file_is_refused_at_every_length(path: Path) -> None:
    data = path.read_bytes()
    for length in [*range(1, len(data), 997), len(data) - 22, len(data) - 1]:
        path.write_bytes(data[:length])
        refusal(path)
    path.write_bytes(data + b"\0")
    assert "appended" in refusal(path)


@pytest.mark.parametrize("name", ["../evil", "/etc/passwd", "a/b", "..", "c:evil", "a\\b", "folder/", "ü"])
def test_names_that_lead_elsewhere_are_refused(path: Path, name: str) -> None:
    rezip(path, content={name: b"x"})
    assert "member name" in refusal(path)
    assert not (path.parent / "evil").exists()


@pytest.mark.parametrize(
    ("mode", "expected"), [(0o120777, "link or a folder"), (0o040755, "link or a folder")]
)
def test_links_and_folders_are_refused(path: Path, mode: int, expected: str) -> None:
    def change(info: zipfile.ZipInfo) -> None:
        if info.filename == "cpu.pt2":
            info.external_attr = mode << 16

    rezip(path, change=change)
    assert expected in refusal(path)


def test_compressed_members_are_refused(path: Path) -> None:
    def change(info: zipfile.ZipInfo) -> None:
        info.compress_type = zipfile.ZIP_DEFLATED

    rezip(path, change=change)
    assert "compressed" in refusal(path)


@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_members_that_stand_twice_are_refused(path: Path) -> None:
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr("cpu.pt2", b"other")
    assert "twice" in refusal(path)


def test_members_that_the_manifest_does_not_know_are_refused(path: Path) -> None:
    rezip(path, content={"extra.pt2": b"x"})
    assert "in the file but not in the manifest" in refusal(path)


def test_members_that_are_missing_are_refused(path: Path) -> None:
    with zipfile.ZipFile(path) as archive:
        manifest = archive.read("manifest.json")
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("manifest.json", manifest)
    assert "in the manifest but not in the file" in refusal(path)


def test_members_of_another_size_are_refused(path: Path) -> None:
    rezip(path, content={"cpu.pt2": NATIVE + b"more"})
    assert f"has {len(NATIVE) + 4} bytes, the manifest says {len(NATIVE)}" in refusal(path)


def test_the_manifest_must_come_first(path: Path) -> None:
    with zipfile.ZipFile(path) as archive:
        members = {name: archive.read(name) for name in reversed(archive.namelist())}
    with zipfile.ZipFile(path, "w") as archive:
        for name, data in members.items():
            archive.writestr(name, data)
    assert "begins with" in refusal(path)


def test_a_manifest_that_claims_a_gigabyte_is_refused_unread(path: Path) -> None:
    data = bytearray(path.read_bytes())
    central = data.index(b"PK\x01\x02")
    for offset in (18, central + 20):
        struct.pack_into("<2L", data, offset, 2**30, 2**30)
    path.write_bytes(data)
    assert "claims 1073741824 bytes" in refusal(path)


def test_a_manifest_of_more_than_a_megabyte_is_refused(path: Path) -> None:
    rezip(path, content={"manifest.json": b" " * (2**20 + 1)})
    assert "claims 1048577 bytes" in refusal(path)


@pytest.mark.parametrize(
    ("edit", "expected"),
    [
        (lambda m: m.update(format_version=2), "format version 2 is unknown, this version reads 1"),
        (lambda m: m.update(format_version=True), "format version True is unknown"),
        (lambda m: m.update(format="zip"), "format must be"),
        (lambda m: m.update(later=1), "unknown key 'later'"),
        (lambda m: m.pop("buckets"), "key 'buckets' is missing"),
        (lambda m: m.update(buckets=[]), "at least one"),
        (lambda m: m.update(members={}), "members must be a JSON list"),
        (lambda m: m["members"].pop(0), "weights.safetensors"),
        (lambda m: m["members"][0].update(size=-1), "size -1"),
        (lambda m: m["members"][0].update(name="../w"), "must be a plain file name"),
        (lambda m: m["members"][0].update(name=["w"]), "must be a plain file name"),
        (lambda m: m["members"][0].update(sha256="00"), "64 hexadecimal digits"),
        (lambda m: m["members"][1]["target"].update(kind="pickle"), "target kind 'pickle'"),
        (lambda m: m["members"][1]["parity"].update(max_error="0"), "max_error '0'"),
        (lambda m: m["adapter"].update(hidden_dim=2**40), "hidden_dim 1099511627776 is larger than"),
        (lambda m: m["adapter"].update(architecture="other"), "architecture 'other'"),
        (lambda m: m.update(stack_fingerprint="a\nb"), "must be one line"),
    ],
)
def test_a_manifest_that_is_wrong_is_refused(
    path: Path, edit: Callable[[dict[str, Any]], Any], expected: str
) -> None:
    edit_manifest(path, edit)
    assert expected in refusal(path)


@pytest.mark.parametrize(
    "text", [b"[" * 100_000, b"\xff", b"[]", b'{"format": 1, "format": 1}', b'{"quality": NaN}', b"{"]
)
def test_a_manifest_that_is_no_json_object_is_refused(path: Path, text: bytes) -> None:
    rezip(path, content={"manifest.json": text})
    assert "manifest" in refusal(path)


def test_a_pinned_engine_is_compared_as_a_whole(path: Path) -> None:
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    EngineFile(path, expected_sha256=digest.upper()).close()
    assert "not the expected" in refusal(path, expected_sha256="0" * 64)
    assert "must be 64 hexadecimal digits" in refusal(path, expected_sha256="0")


def test_an_engine_of_another_stack_is_refused(path: Path) -> None:
    with EngineFile(path) as engine:
        engine.check_stack("nano-1")
        with pytest.raises(EngineError, match=r"stack 'nano-1', those of 'full-2' would mean nothing to it"):
            engine.check_stack("full-2")


def test_weights_that_do_not_fit_the_configuration_are_refused(path: Path) -> None:
    edit_manifest(path, lambda m: m["adapter"].update(num_queries=6))
    with EngineFile(path) as engine, pytest.raises(EngineError, match=r"does not fit.*body\.queries"):
        load_engine_adapter(engine)


def test_a_bare_plan_is_told_from_a_damaged_engine(path: Path, tmp_path: Path) -> None:
    plan = tmp_path / "plan.engine"
    plan.write_bytes(b"ftrt" + bytes(100))
    assert not is_engine_archive(plan)
    assert read_bare_plan(plan) == plan.read_bytes()
    with pytest.raises(EngineError, match="not the expected"):
        read_bare_plan(plan, expected_sha256="0" * 64)
    data = bytearray(path.read_bytes())
    data[0] ^= 1
    path.write_bytes(data)
    assert is_engine_archive(path)
    with pytest.raises(EngineError, match="is an engine with a manifest"):
        read_bare_plan(path)


def test_a_file_that_is_not_there_is_refused(tmp_path: Path) -> None:
    assert "is not a file" in refusal(tmp_path / "none.engine")
