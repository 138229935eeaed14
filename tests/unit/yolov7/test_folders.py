"""Folders are removed whole, also beside another that removes them."""

import shutil

from yolov7 import folders


def test_a_folder_that_another_empties_meanwhile_is_removed(tmp_path, monkeypatch):
    folder, really = tmp_path / "folder", shutil.rmtree
    folder.mkdir()
    (folder / "first").write_text("1")
    (folder / "second").write_text("2")
    calls = []

    def interrupted(path):
        calls.append(path)
        if len(calls) == 1:
            (folder / "first").unlink()
            raise FileNotFoundError(2, "No such file or directory", "first")
        really(path)

    monkeypatch.setattr(shutil, "rmtree", interrupted)
    folders.remove(folder)
    assert not folder.exists() and len(calls) == 2


def test_a_link_goes_and_its_target_stays(tmp_path):
    target = tmp_path / "target"
    target.mkdir()
    (tmp_path / "link").symlink_to(target)
    folders.remove(tmp_path / "link")
    folders.remove(tmp_path / "never was")
    assert target.is_dir() and not (tmp_path / "link").is_symlink()
