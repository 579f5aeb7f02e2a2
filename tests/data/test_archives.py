"""Unpacking brings the wanted members and nothing outside the folder."""

from __future__ import annotations

import io
import lzma
import stat
import tarfile
import zipfile
from pathlib import Path

import pytest

from thrifty.core.errors import InputError
from thrifty.data.archives import unpack


def make_tar(members: dict[str, bytes], link: tuple[str, str] | None = None) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        for name, content in members.items():
            entry = tarfile.TarInfo(name)
            entry.size = len(content)
            tar.addfile(entry, io.BytesIO(content))
        if link:
            entry = tarfile.TarInfo(link[0])
            entry.type, entry.linkname = tarfile.SYMTYPE, link[1]
            tar.addfile(entry)
    return buffer.getvalue()


def make_deb(members: dict[str, bytes]) -> bytes:
    def member(name: str, content: bytes) -> bytes:
        head = f"{name:<16}{0:<12}{0:<6}{0:<6}{'100644':<8}{len(content):<10}`\n".encode()
        return head + content + b"\n" * (len(content) % 2)

    payload = lzma.compress(make_tar(members))
    return b"!<arch>\n" + member("debian-binary", b"2.0") + member("control.tar", b"x") + member("data.tar.xz", payload)


def test_wheel_members_that_match_are_unpacked(tmp_path: Path) -> None:
    wheel = tmp_path / "a-1-py3-none-any.whl"
    with zipfile.ZipFile(wheel, "w") as bundle:
        bundle.writestr("a/data/x.txt", "hello")
        bundle.writestr("a/code.py", "boom()")
    root = unpack(wheel, tmp_path / "out", ["a/data/*"])
    assert [path.relative_to(root).as_posix() for path in root.rglob("*") if path.is_file()] == ["a/data/x.txt"]
    assert (root / "a/data/x.txt").read_text() == "hello"


def test_tarball_and_debian_package_are_unpacked(tmp_path: Path) -> None:
    (tmp_path / "b.tgz").write_bytes(__import__("gzip").compress(make_tar({"package/x": b"1"})))
    (tmp_path / "c.deb").write_bytes(make_deb({"./usr/share/c/x": b"22", "./etc/skip": b"3"}))
    assert (unpack(tmp_path / "b.tgz", tmp_path / "b") / "package/x").read_bytes() == b"1"
    root = unpack(tmp_path / "c.deb", tmp_path / "c", ["usr/share/c/*"])
    assert (root / "usr/share/c/x").read_bytes() == b"22"
    assert not (root / "etc").exists()


@pytest.mark.parametrize("name", ["../evil", "/evil", "a/../../evil", "a\\..\\evil", "C:/evil"])
def test_zip_member_outside_the_folder_is_refused(tmp_path: Path, name: str) -> None:
    wheel = tmp_path / "a.whl"
    with zipfile.ZipFile(wheel, "w") as bundle:
        bundle.writestr(name, "x")
    with pytest.raises(InputError, match="would leave the folder"):
        unpack(wheel, tmp_path / "deep" / "out")
    assert not list(tmp_path.rglob("evil"))


def test_zip_link_is_refused(tmp_path: Path) -> None:
    wheel = tmp_path / "a.whl"
    entry = zipfile.ZipInfo("link")
    entry.external_attr = (stat.S_IFLNK | 0o777) << 16
    with zipfile.ZipFile(wheel, "w") as bundle:
        bundle.writestr(entry, "/etc/passwd")
    with pytest.raises(InputError, match="would leave the folder"):
        unpack(wheel, tmp_path / "out")


@pytest.mark.parametrize(
    ("name", "link"), [("../evil", None), ("ok", ("link", "/etc/passwd")), ("ok", ("link", "../.."))]
)
def test_tar_member_outside_the_folder_is_refused(tmp_path: Path, name: str, link: tuple[str, str] | None) -> None:
    tarball = tmp_path / "a.tgz"
    tarball.write_bytes(__import__("gzip").compress(make_tar({name: b"x"}, link)))
    with pytest.raises(InputError, match=r"a\.tgz: damaged or unsafe"):
        unpack(tarball, tmp_path / "deep" / "out")
    assert not list(tmp_path.rglob("evil"))


@pytest.mark.parametrize("name", ["a.whl", "a.tgz", "a.deb", "a.rar"])
def test_damaged_or_unknown_archive_is_one_line(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(b"not an archive at all")
    with pytest.raises(InputError) as caught:
        unpack(tmp_path / name, tmp_path / "out")
    assert name in str(caught.value)
    assert "\n" not in str(caught.value)


def test_debian_package_without_payload_is_refused(tmp_path: Path) -> None:
    whole = make_deb({"x": b"1"})
    (tmp_path / "a.deb").write_bytes(whole[: whole.index(b"data.tar.xz")])
    with pytest.raises(InputError, match=r"no data\.tar inside"):
        unpack(tmp_path / "a.deb", tmp_path / "out")
