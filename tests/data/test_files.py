"""Files that are replaced whole, whatever stands in their place."""

import errno
import os

import pytest

from geopol_tkg.data.files import replace_file


def write(path, content):
    with replace_file(path) as file:
        file.write(content)


def test_a_link_stays_and_its_file_is_replaced(tmp_path):
    (tmp_path / "link").symlink_to(tmp_path / "folder" / "target")
    for content in (b"first", b"second"):
        write(tmp_path / "link", content)
        assert (tmp_path / "link").is_symlink()
        assert (tmp_path / "folder" / "target").read_bytes() == content
    assert len(list((tmp_path / "folder").iterdir())) == 1


def test_a_pipe_is_written_to(tmp_path):
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    reader = os.open(pipe, os.O_RDONLY | os.O_NONBLOCK)
    try:
        write(pipe, b"content")
        assert os.read(reader, 100) == b"content"
    finally:
        os.close(reader)
    assert pipe.is_fifo()


def run_out_of_space(path):
    with replace_file(path) as file:
        file.write(b"half")
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def test_errors_name_the_file_and_leave_the_one_before(tmp_path):
    path = tmp_path / "x"
    path.write_bytes(b"before")
    with pytest.raises(OSError, match=f"No space left on device: '{path}'"):
        run_out_of_space(path)
    assert path.read_bytes() == b"before"
    assert list(tmp_path.iterdir()) == [path]
    with pytest.raises(IsADirectoryError, match=str(tmp_path)):
        write(tmp_path, b"")
