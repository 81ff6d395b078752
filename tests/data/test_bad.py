"""How bad pairs are said."""

import pytest

from pgdpo.data.bad import check_bad
from pgdpo.messages.errors import InputError

pytestmark = pytest.mark.quick


def test_what_pairs_of_one_file_share_is_said_once():
    bad = {f"p{number}": "shard-1: its SHA-256 is ..." for number in range(12)} | {"q": "shard-2: missing"}
    with pytest.raises(InputError) as caught:
        check_bad(bad, 100, "fail", "prepared")
    assert str(caught.value).splitlines() == ["shard-1: its SHA-256 is ...", "shard-2: missing"]
    with pytest.raises(InputError, match="13 of 100 pairs are bad"):
        check_bad(bad, 100, "skip", "prepared")
