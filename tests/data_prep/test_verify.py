import json
import shutil
import tarfile
from pathlib import Path

import pytest

from data_prep.__main__ import main
from data_prep.checksums import file_checksum
from data_prep.content import read_index
from data_prep.verify import find_damage


@pytest.fixture
def copy(toy_dataset: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(toy_dataset, tmp_path / "copy"))


def test_a_fresh_dataset_is_intact(toy_dataset: Path) -> None:
    assert list(find_damage(toy_dataset)) == []


@pytest.mark.parametrize("member", ["jpg", "json"])
def test_one_flipped_byte_names_shard_and_key(copy: Path, member: str) -> None:
    table = read_index(copy / "items/items-000001.index.arrow")
    position = table["member"].to_pylist().index(member)
    row, offset = (table[name][position].as_py() for name in ("item_row", "offset"))
    flip(copy / "items/items-000001.tar", offset + 9)
    lines = list(find_damage(copy))
    assert lines[0].startswith("items/items-000001.tar: found as many bytes of other content")
    assert lines[1:] == [f"items/items-000001.tar: key {row:010d}, member {member} is damaged"]


def test_a_flipped_byte_in_a_tar_header_or_a_user_block_is_named(copy: Path) -> None:
    flip(copy / "items/items-000000.tar", 3)
    flip(copy / "users/users-000000.tar", 5000)
    lines = list(find_damage(copy))
    assert any("key 0000000000" in line and "tar header" in line for line in lines)
    assert any(line.startswith("users/users-000000.tar: key 00000000") for line in lines)


def test_a_cut_off_tar_names_the_first_lost_key(copy: Path) -> None:
    tar = copy / "items/items-000002.tar"
    tar.write_bytes(tar.read_bytes()[:-30_000])
    lines = list(find_damage(copy))
    assert "items/items-000002.tar: found" in lines[0]
    assert "is cut off" in lines[1]


@pytest.mark.parametrize("name", ["items/items-000000.tar", "users.parquet"])
def test_a_missing_file_is_named_and_the_exit_code_is_not_zero(
    copy: Path, name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    (copy / name).unlink()
    assert main(["verify", "--dataset_dir", str(copy)]) == 1
    assert f"{name}: missing" in capsys.readouterr().out


def test_a_tar_of_an_earlier_run_is_named(copy: Path) -> None:
    shutil.copy(copy / "items/items-000000.tar", copy / "items/items-000077.tar")
    assert "items/items-000077.tar: found, but not in the manifest" in "".join(find_damage(copy))


def test_a_link_in_a_tar_whose_checksum_fits_is_named_and_read_by_nobody(copy: Path) -> None:
    """webdataset, the next reader, would follow it."""
    manifest = json.loads((copy / "manifest.json").read_text())
    (entry,) = [one for one in manifest["files"] if one["path"] == "users/users-000000.tar"]
    path = copy / entry["path"]
    payload = path.read_bytes()[: -2 * 512]
    link = tarfile.TarInfo("000009.events.arrow")
    link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
    path.write_bytes(payload + link.tobuf(tarfile.USTAR_FORMAT) + bytes(2 * 512))
    entry |= {"bytes": path.stat().st_size, "xxh128": file_checksum(path)}
    (copy / "manifest.json").write_text(json.dumps(manifest))
    (line,) = find_damage(copy)
    assert "member '000009.events.arrow': found a symbolic link" in line


def flip(path: Path, position: int) -> None:
    payload = bytearray(path.read_bytes())
    payload[position] ^= 0x10
    path.write_bytes(payload)
