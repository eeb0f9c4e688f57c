"""Files that may be anything are read only as what they should be."""

from pathlib import Path

import pytest

from runtime.files import read_regular


def test_a_file_of_another_length_is_not_read(tmp_path: Path):
    path = tmp_path / "file"
    path.write_bytes(b"12345")
    assert read_regular(path, size=5) == read_regular(path, most=5) == b"12345"
    for size in (4, 6):
        with pytest.raises(ValueError, match=f"has 5 bytes, expected {size}"):
            read_regular(path, size=size)
    with pytest.raises(ValueError, match="has 5 bytes, expected at most 4"):
        read_regular(path, most=4)
