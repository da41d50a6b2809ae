"""Files that are either whole or not there."""

from pathlib import Path

import pytest

from resnet_pl.utils import UserError, replacing


def test_the_new_file_takes_the_old_ones_place_at_the_end(tmp_path):
    path = tmp_path / "a.txt"
    path.write_text("old")
    with replacing(path) as partial:
        partial.write_text("new")
        assert path.read_text() == "old"
    assert path.read_text() == "new"
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("error", [ValueError, OSError, KeyboardInterrupt])
def test_an_error_leaves_the_old_file_and_nothing_else(tmp_path, error):
    path = tmp_path / "a.txt"
    path.write_text("old")
    with pytest.raises(error), replacing(path) as partial:
        partial.write_text("half")
        raise error
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_folders_are_made(tmp_path):
    with replacing(tmp_path / "a" / "b" / "c.txt") as partial:
        partial.write_text("text")
    assert (tmp_path / "a" / "b" / "c.txt").read_text() == "text"


def test_two_writers_do_not_meet(tmp_path):
    with replacing(tmp_path / "a.txt") as one, replacing(tmp_path / "a.txt") as two:
        one.write_text("one")
        two.write_text("two")
    assert (tmp_path / "a.txt").read_text() == "one"  # the block that ends last


@pytest.mark.parametrize("place", ["folder", "file/below"])
def test_a_place_that_cannot_be_written(tmp_path, place):
    (tmp_path / "folder").mkdir()
    (tmp_path / "file").touch()
    path: Path = tmp_path / place
    with pytest.raises(UserError, match="cannot be written") as error, replacing(path):
        pass
    assert str(path) in str(error.value)
