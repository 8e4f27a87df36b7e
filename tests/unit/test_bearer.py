"""Files with tokens."""

from __future__ import annotations

from softkin.bearer import read_tokens


def test_the_mark_that_some_editors_write_first_is_no_part_of_a_token(tmp_path):
    """It cannot be seen."""
    file = tmp_path / "tokens"
    file.write_bytes(b"\xef\xbb\xbffirst-token-0123456789\nsecond-token-0123456789\n")

    assert read_tokens(file) == ("first-token-0123456789", "second-token-0123456789")
