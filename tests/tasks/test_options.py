"""What a task is given beside what and where: a name or a value that there is not is refused before anything runs."""

from __future__ import annotations

import pytest

import edm_ray as edm


@pytest.mark.parametrize(
    ("call", "says"),
    [
        (lambda: edm.prepare("digits", "d", crop="center"), r"crop='center' is not allowed: 'centre' or 'none'"),
        (lambda: edm.prepare("digits", "d", encoding="jpeg"), r"encoding='jpeg' is not allowed: 'png' or 'raw'"),
        (lambda: edm.prepare("digits", "d", shard=8), r"shard=8 is not allowed: .*\(did you mean 'shards'"),
        (lambda: edm.evaluate("m", "r", protocol="papr"), r"protocol='papr' is not allowed: 'interval' or 'paper'"),
        (lambda: edm.evaluate("m", "r", metric="fid"), r"metric='fid' is not allowed: .*did you mean 'metrics'"),
        (
            lambda: edm.train("d", "tiny", "o", reader="s3"),
            r"reader='s3' is not allowed: 'cache' or 'ray-data'",
        ),
        (lambda: edm.sweep("m", "r", "s", "o", grids=5), r"grids=5 is not allowed: .*did you mean 'grid'"),
        (lambda: edm.reference("d", "o", feature=5), r"feature=5 is not allowed: .*did you mean 'features'"),
        (lambda: edm.Local(device="gpu"), r"device='gpu' is not allowed: cpu or cuda"),
        (lambda: edm.Ray(device="gpu"), r"device='gpu' is not allowed: cpu or cuda"),
        (lambda: edm.Ray(workers=0), r"workers 0 to 0"),
    ],
)
def test_a_mistyped_option_or_value_is_named_with_what_is_allowed(call, says: str) -> None:
    with pytest.raises(edm.InputError, match=says):
        call()


def test_none_is_a_value_where_an_option_may_be_left_out() -> None:
    with pytest.raises(edm.InputError, match="no data set"):
        edm.train("nowhere", "tiny", "out", reader=None)
