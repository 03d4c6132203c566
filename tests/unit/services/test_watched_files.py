"""Files are read again when they were replaced, and only then."""

from pathlib import Path

import pytest

from headrace.services.watched_files import WatchedFiles


def test_what_has_not_changed_is_not_read_again(tmp_path: Path) -> None:
    first, second = tmp_path / "first", tmp_path / "second"
    first.write_text("1")
    second.write_text("2")
    watched = WatchedFiles([first, second])
    assert watched.load_if_changed(lambda: "loaded") == "loaded"
    assert watched.load_if_changed(lambda: "again") is None
    second.write_text("22")
    assert watched.load_if_changed(lambda: "changed") == "changed"
    (tmp_path / "new").write_text("1")
    (tmp_path / "new").rename(first)
    assert watched.load_if_changed(lambda: "renamed") == "renamed"


def test_the_switch_of_a_link_is_a_change(tmp_path: Path) -> None:
    for name in ("old", "new"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "file").write_text("same size")
    link = tmp_path / "current"
    link.symlink_to(tmp_path / "old")
    watched = WatchedFiles([link / "file"])
    assert watched.load_if_changed(lambda: "old") == "old"
    (tmp_path / "next").symlink_to(tmp_path / "new")
    (tmp_path / "next").rename(link)
    assert watched.load_if_changed(lambda: "new") == "new"


def test_what_cannot_be_loaded_is_said_once(tmp_path: Path) -> None:
    path = tmp_path / "file"
    watched = WatchedFiles([path])
    with pytest.raises(FileNotFoundError):
        watched.load_if_changed(path.read_text)
    assert watched.load_if_changed(path.read_text) is None
    path.write_text("here")
    assert watched.load_if_changed(path.read_text) == "here"


def test_what_is_replaced_while_it_is_read_is_read_again(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_text("old")
    watched = WatchedFiles([path])

    def load() -> str:
        content = path.read_text()
        path.write_text("newer")
        return content

    assert watched.load_if_changed(load) is None
    assert watched.load_if_changed(path.read_text) == "newer"
