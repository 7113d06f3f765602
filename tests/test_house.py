"""The house keeps its order: imports point down and stand at the top, no two files import each other, none is long."""

import house
import pytest

from tools.count import code_lines, count, main

ALL = [each for file in house.files() for each in house.imports(file)]

#: What imports late, a file or an import of one, and why; verbs do as well, so that `--help` is quick.
LATE = {
    "_front.py": "import midward loads no torch, nor does a room whose config classes are flags",
    "_inspect.py": "Inspect imports it for every task of anybody's",
    "_sglang.py": "SGLang imports it in each of its processes, of anybody's",
    "chat.py -> midward.guards": "a model without a guard loads no scikit-learn",
    "models/llada2.py -> transformers.core_model_loading": "newer releases than the least one have it",
    "reports/compare.py -> midward.probes.registry": "a gate of other runs loads no torch, and refuses a flag at once",
    "utility/run.py -> midward.utility.lm": "lm-eval, an extra, brings its base class",
}
#: Packages that an extra or the user brings, and that are imported where they are used.
EXTRAS = {"resvg_py", "lm_eval", "sglang", "ray"}


def test_every_file_is_in_a_room_of_the_order():
    assert {house.room_of(file) for file in house.files()} <= house.RANK.keys()


def test_imports_point_down():
    """But for `midward` itself, which says its version and is light."""
    rank = house.RANK
    inside = [each for each in ALL if each.to and each.target != "midward"]
    up = [each for each in inside if rank[house.room_of(each.to)] > rank[house.room_of(each.file)]]
    assert not [str(each) for each in up]


def test_imports_stand_at_the_top():
    late = [each for each in ALL if each.late and house.room_of(each.file) != "cli"]
    listed = {each for each in late if {each.file, str(each)} & LATE.keys()}
    assert not [str(each) for each in late if each not in listed and each.target.split(".")[0] not in EXTRAS]
    assert LATE.keys() <= {name for each in listed for name in (each.file, str(each))}  # none of the list is stale


def test_no_files_import_each_other():
    edges: dict[str, set[str]] = {}
    for each in ALL:
        if each.to and not each.typing:
            edges.setdefault(each.file, set()).add(each.to)
    assert not house.circle(edges)


def test_a_file_imports_its_neighbours_and_not_a_front_door_that_imports_late():
    late = {each.file for each in ALL if each.to == "_front.py"}
    assert not [str(each) for each in ALL if each.to in late and each.to == f"{house.room_of(each.file)}/__init__.py"]


def test_no_file_is_left_that_nobody_imports():
    """But for verbs, which are named in a table, and the doors to the street."""
    used = {each.to for each in ALL if each.to != each.file}
    doors = house.ORDER[-1]
    used.add("serving/research.py")  # the server, which comes next, mounts it
    left = [file for file in house.files() if file not in used and not file.endswith("__init__.py")]
    assert not [file for file in left if house.room_of(file) not in ("cli", *doors)]


def test_no_file_is_long():
    assert not {file: lines for file, lines in count(house.SOURCE).items() if lines >= 450}


@pytest.mark.parametrize(
    "source, lines",
    [
        ("", 0),
        ('"""Doc."""\n\n# comment\nx = 1  # why\n', 1),
        ('def f():\n    """Doc\n\n    more."""\n    return """a\n\nb"""\n', 4),
        ("x = [\n    1,\n\n    # none\n    2,\n]\n", 4),
        ('class A:\n    x: int\n    """About x, a string that is no docstring."""\n', 3),
    ],
)
def test_code_is_what_is_neither_comment_nor_docstring(source, lines):
    assert code_lines(source) == lines


def test_the_count_names_rooms_and_the_longest_files(tmp_path, capsys):
    (tmp_path / "room").mkdir()
    (tmp_path / "room" / "a.py").write_text("x = 1\ny = 2\n")
    (tmp_path / "b.py").write_text("z = 3\n")
    main([str(tmp_path), "--longest", "1"])
    words = capsys.readouterr().out.split()
    assert words == ["2", "room", "1", "(single", "files)", "3", "sum", "2", "room/a.py"]
