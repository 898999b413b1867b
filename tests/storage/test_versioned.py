from __future__ import annotations

import pytest

from edm_ray.errors import InputError, IntegrityError
from edm_ray.storage.versioned import read_json, write_json
from tests.formats import without_format


def test_a_file_says_its_format_and_gives_back_what_was_written(tmp_path):
    path = tmp_path / "a.json"
    write_json(str(path), {"b": [1, 2.5, None]})
    assert path.read_text().startswith('{\n "format": 1,') and read_json(str(path)) == {"b": [1, 2.5, None]}
    assert without_format(tmp_path) == []
    (tmp_path / "b.jsonl").write_text('{"format": 1}\n{}\n')
    assert without_format(tmp_path) == [tmp_path / "b.jsonl"]


@pytest.mark.parametrize(
    ("text", "kind", "says"),
    [
        (
            '{"format": 2, "b": 1}',
            InputError,
            "a.json: format=2 is not allowed: this version of edm_ray reads format 1; fix it",
        ),
        ('{"b": 1}', InputError, "format=None is not allowed"),
        ("[]", IntegrityError, "a.json: not a JSON object; fix it"),
        ('{"format": 1,', IntegrityError, "a.json: not JSON"),
    ],
)
def test_another_format_or_damage_is_refused_with_the_fix(tmp_path, text, kind, says):
    (tmp_path / "a.json").write_text(text)
    with pytest.raises(kind, match=says):
        read_json(str(tmp_path / "a.json"), "fix it")
