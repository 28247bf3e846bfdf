"""Documents of any origin: read, or refused in one line that names the file and the place."""

from __future__ import annotations

import json
import math
import os
from pathlib import Path

import pytest

from heretic.errors import HereticError, PromptError, RunError
from heretic.system import documents
from heretic.system.documents import parse_json, parse_toml, read_json, read_text, read_toml


class TestJson:
    @pytest.mark.parametrize(
        ("text", "reason"),
        [
            ("{", "line 1"),
            ('{"a": 1,\n b}', "line 2"),
            ("[" * 100_000, "nested too deeply"),
            ('{"a":' * 100_000, "nested too deeply"),
            ("[" * 65 + "]" * 65, None),
            ("[" * 66 + "]" * 66, "nested too deeply"),
            ("1" * 5000, "digits"),
            ('{"a": -' + "1" * 309 + "}", "digits"),
            ("1" * 308, None),
            ('{"a": {"b": [0, NaN]}}', r"a\.b\[1\] is nan"),
            ('{"a": -Infinity}', "a is -inf"),
            ('{"a": 1e999}', "a is inf"),
            ('{"a": 1, "a": 2}', "'a' is given twice"),
            (r'{"a": ["\ud83d"]}', r"a\[0\] holds half a character"),
            (r'{"a": {"\ud83d": 1}}', "a key of a holds half"),
            (r'{"a\nb": NaN}', r"'a\\nb' is nan"),
            (r'"\ud83d\ude00"', None),
            ("", "line 1"),
            (b"\xff", "UTF-8"),
            (b"\xef\xbb\xbf1", None),
        ],
    )
    def test_one_line_says_what_is_wrong(self, text, reason):
        if reason is None:
            parse_json(text)
            return
        with pytest.raises(ValueError, match=reason) as caught:
            parse_json(text)
        assert "\n" not in str(caught.value)

    def test_files_of_other_programs_may_hold_what_readers_differ_on(self):
        value = parse_json('{"a": Infinity, "a": 1e999, "b": "\\ud83d"}', strict=False)
        assert math.isinf(value["a"])
        with pytest.raises(ValueError, match="deeply"):
            parse_json("[" * 100_000, strict=False)

    def test_what_is_well_formed_is_read_as_the_standard_library_reads_it(self):
        text = json.dumps({"a": [1, 2.5, None, True, {"ü": "é"}], "b": 10**20, "c": -0.0})
        assert parse_json(text) == json.loads(text)


class TestToml:
    @pytest.mark.parametrize(
        ("text", "reason"),
        [
            ("a = ", "end of document"),
            ("a = 1\na = 2\n", "line 2|overwrite"),
            ("a = " + "[" * 10_000, "deeply"),
            ("a = " + "{b=" * 10_000, "deeply"),
            ("a" + ".a" * 70 + " = 1", "deeply"),
            ("a = " + "1" * 5000, "digits"),
            ("[a]\nb = [nan]", r"a\.b\[0\] is nan"),
            ("a = -inf", "a is -inf"),
        ],
    )
    def test_one_line_says_what_is_wrong(self, text, reason):
        with pytest.raises(ValueError, match=reason):
            parse_toml(text)


class TestFiles:
    def test_byte_order_marks_are_no_part_of_the_text(self, tmp_path: Path):
        file = tmp_path / "a.toml"
        file.write_bytes(b"\xef\xbb\xbfa = 1\r\nb = 2\r\n")
        assert read_toml(file) == {"a": 1, "b": 2}

    @pytest.mark.parametrize(
        ("content", "reason"),
        [
            (b"\xff\xfea\x00", "UTF-16"),
            (b"\xfe\xff\x00a", "UTF-16"),
            (b"a = 1\nb = '\xe4'", r"not UTF-8 text \(line 2\)"),
        ],
    )
    def test_other_encodings_are_named(self, tmp_path: Path, content, reason):
        file = tmp_path / "a.toml"
        file.write_bytes(content)
        with pytest.raises(RunError, match=reason) as caught:
            read_text(file)
        assert str(file) in str(caught.value)

    @pytest.mark.parametrize("reader", [read_text, read_json, read_toml])
    @pytest.mark.parametrize("name", ["missing", ".", "a\0b", "x" * 300, "file/below"])
    def test_what_cannot_be_read_is_one_line(self, tmp_path: Path, reader, name):
        (tmp_path / "file").write_text("")
        with pytest.raises(PromptError) as caught:
            reader(tmp_path / name, kind=PromptError)
        assert "\n" not in str(caught.value)

    def test_a_file_without_end_is_refused(self, monkeypatch):
        monkeypatch.setattr(documents, "MOST_BYTES", 1000)
        with pytest.raises(HereticError, match="larger"):
            read_text(Path(os.devnull).with_name("zero"))

    def test_errors_name_file_place_and_remedy(self, tmp_path: Path):
        file = tmp_path / "plan.json"
        file.write_text('{"plan": {"rank": NaN}}')
        with pytest.raises(PromptError) as caught:
            read_json(file, kind=PromptError, what=f"The plan {file}", remedy="Make another.")
        assert str(caught.value) == (
            f"The plan {file} is not valid JSON: plan.rank is nan, not a finite number. "
            "Make another."
        )
