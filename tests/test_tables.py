"""CSV and JSONL files as people have them."""

import csv
import json

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from midward._tables import read_table, require_column, write_table

CELL = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=20)


@given(st.lists(st.fixed_dictionaries({"goal": CELL, "target, or so": CELL}), min_size=1, max_size=5), st.booleans())
def test_any_text_comes_back_from_csv_and_jsonl(tmp_path_factory, rows, mark):
    folder = tmp_path_factory.mktemp("tables")
    encoding = "utf-8-sig" if mark else "utf-8"
    with (folder / "t.csv").open("w", newline="", encoding=encoding) as file:
        writer = csv.DictWriter(file, list(rows[0]), quoting=csv.QUOTE_ALL)
        writer.writeheader()
        writer.writerows(rows)
    with (folder / "t.jsonl").open("w", newline="", encoding=encoding) as file:
        for row in rows:
            file.write(json.dumps(row, ensure_ascii=False) + "\r\n\n")
    assert read_table(folder / "t.jsonl") == rows
    filled = [row for row in rows if any(row.values())]
    if filled:
        assert read_table(folder / "t.csv") == filled


def test_a_field_may_be_longer_than_the_csv_modules_limit(tmp_path):
    before = csv.field_size_limit()
    (tmp_path / "t.csv").write_text(f"goal\n{'x' * 300_000}\n")
    assert len(read_table(tmp_path / "t.csv")[0]["goal"]) == 300_000
    assert csv.field_size_limit() == before


@pytest.mark.parametrize(
    "name, content, message",
    [
        ("t.csv", b"", "t.csv holds no rows"),
        ("t.csv", b"goal,target\n", "holds no rows"),
        ("t.jsonl", b"\n\n", "holds no rows"),
        ("t.csv", b"goal,target\na,b\nc,d,e\n", r"line 3 has more fields than the header's 2"),
        ("t.csv", b'goal,target\n"a,b\nc,d\n', "is no proper CSV"),
        ("t.csv", b"goal,goal\na,b\n", "more than one column 'goal'"),
        ("t.csv", "goal\né\n".encode("latin-1"), "is not UTF-8"),
        ("t.csv", "goal\nx\n".encode("utf-16"), "is not UTF-8"),
        ("t.jsonl", b'{"goal": "a"}\n{"goal": \n', "line 2 is no JSON"),
        ("t.jsonl", b'{"goal": "a"}\n["b"]\n', r"line 2 is '\[\"b\"\]', not an object"),
        ("t.jsonl", b'{"goal": "\\ud83d"}\n', "line 1 holds half of a surrogate pair"),
        ("t.txt", b"a\n", "extension '.txt'; give a file that ends in .csv, .jsonl or .json"),
        ("t", b"a\n", "extension ''"),
    ],
)
def test_a_bad_file_is_told_with_its_line(tmp_path, name, content, message):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError, match=message):
        read_table(tmp_path / name)


@pytest.mark.parametrize(
    "content",
    [
        "goal,target,,\na,b,,\n,,,\nc,d,,\n",  # as spreadsheets save what was once filled
        "goal,target\na,b,,\n\n,\n,,,,\nc,d\n",
        "\ufeff\ngoal,target,\na,b\nc,d\n",
    ],
)
def test_what_a_spreadsheet_leaves_empty_is_nothing(tmp_path, content):
    (tmp_path / "t.csv").write_text(content)
    assert read_table(tmp_path / "t.csv") == [{"goal": "a", "target": "b"}, {"goal": "c", "target": "d"}]


def test_a_column_without_a_name_stays_where_it_holds_something(tmp_path):
    (tmp_path / "t.csv").write_text(",goal\n0,a\n1,b\n")  # as pandas writes its index
    assert read_table(tmp_path / "t.csv") == [{"": "0", "goal": "a"}, {"": "1", "goal": "b"}]


def test_no_such_file_names_the_nearest(tmp_path):
    (tmp_path / "prompts.csv").touch()
    with pytest.raises(FileNotFoundError, match=r"no file .*promts\.csv\. Did you mean '.*prompts\.csv'"):
        read_table(tmp_path / "promts.csv")
    with pytest.raises(FileNotFoundError):
        read_table(tmp_path / "nowhere" / "prompts.csv")
    (tmp_path / "folder.csv").mkdir()
    with pytest.raises(ValueError, match="is a folder"):
        read_table(tmp_path / "folder.csv")


def test_a_missing_column_names_those_there():
    rows = [{"goal": "a"}, {"target": "b"}]
    require_column(rows, "target", "t.csv")
    with pytest.raises(
        ValueError, match=r"t.csv has no column 'goals'. Did you mean 'goal'\? Its columns: goal, target"
    ):
        require_column(rows, "goals", "t.csv")


def test_written_tables_read_back(tmp_path):
    rows = [{"a": 1, "text": 'x, "y"\nz'}, {"a": 2, "b": None, "list": [1, "é"]}]
    path = write_table(tmp_path / "new" / "out.v1", rows)
    assert [file.name for file in path.parent.iterdir()] == ["out.v1.csv"]
    assert read_table(path) == [
        {"a": "1", "text": 'x, "y"\nz', "b": "", "list": ""},
        {"a": "2", "text": "", "b": "", "list": '[1, "é"]'},
    ]


@given(st.lists(st.fixed_dictionaries({"a\rb": CELL, "n": st.integers(0, 9)}), min_size=1, max_size=5))
@example([{"a\rb": "a bare\rreturn", "n": 1}])
def test_any_text_comes_back_from_a_written_table(tmp_path_factory, rows):
    path = write_table(tmp_path_factory.mktemp("tables") / "t", rows)
    assert read_table(path) == [{"a\rb": row["a\rb"], "n": str(row["n"])} for row in rows]


def test_no_rows_to_write(tmp_path):
    with pytest.raises(ValueError, match="no rows"):
        write_table(tmp_path / "out", [])
