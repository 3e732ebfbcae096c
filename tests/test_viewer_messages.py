"""What a page may say on its own socket, and what it may not."""

import json

import pytest

from splatdistill.errors import UserError
from splatdistill.viewer.messages import LARGEST_FILE, MOST_POINTS, Open, Pick, Split, understand
from splatdistill.viewer.picking import Box, Stroke

BOX = {"kind": "box", "points": [[0.1, 0.2], [0.3, 0.4]], "how": "replace"}
STROKE = {"kind": "stroke", "points": [[0.1, 0.2]], "radius": 0.05, "how": "add"}
OPEN = {"kind": "open", "name": "scan.ply", "bytes": 12}


def test_what_the_page_says_is_understood():
    assert understand(json.dumps(BOX)) == Pick(Box((0.1, 0.2), (0.3, 0.4)), "replace")
    assert understand(json.dumps(STROKE)) == Pick(Stroke(((0.1, 0.2),), 0.05), "add")
    assert understand('{"kind": "split", "share": 1}') == Split(1.0)
    assert understand(json.dumps(OPEN)) == Open("scan.ply", ".ply", 12)


@pytest.mark.parametrize(
    "name, ending",
    [
        ("A.SPZ", ".spz"),
        ("a.compressed.ply", ".compressed.ply"),
        ("mesh.obj", ".obj"),
        ("../../etc/passwd.ply", ".ply"),
        ("C:\\x\\y.sog", ".sog"),
    ],
)
def test_of_a_files_name_only_the_ending_and_the_last_part_are_kept(name, ending):
    told = understand(json.dumps(OPEN | {"name": name}))
    assert isinstance(told, Open) and told.ending == ending
    assert "/" not in told.name and "\\" not in told.name and told.name.lower().endswith(ending)


@pytest.mark.parametrize(
    "message",
    [
        "",
        "nonsense",
        "[" * 100_000,
        "3",
        "null",
        "[]",
        "{}",
        '{"kind": []}',
        '{"kind": "eval", "code": "1"}',
        '{"kind": "split", "share": NaN}',
        '{"kind": "split", "share": Infinity}',
        '{"kind": "split", "share": ' + "9" * 4000 + "}",
        '{"kind": "split", "share": true}',
        '{"kind": "split", "share": "0.5"}',
        '{"kind": "split"}',
        '{"kind": "split", "share": 0.5, "more": 1}',
        *(
            json.dumps(BOX | change)
            for change in (
                {"points": [[0.1, 0.2]]},
                {"points": [[0.1, 0.2], [0.3, 1e300]]},
                {"points": [[0.1, 0.2], [0.3]]},
                {"points": [[0.1, 0.2], ["a", 0]]},
                {"points": {"0": [0, 0], "1": [1, 1]}},
                {"points": None},
                {"how": "all"},
                {"how": ["add"]},
                {"how": None},
                {"radius": 0.1},
            )
        ),
        *(
            json.dumps(STROKE | change)
            for change in (
                {"points": []},
                {"points": [[0.1, 0.2]] * (MOST_POINTS + 1)},
                {"radius": 0},
                {"radius": -1},
                {"radius": 1e9},
                {"radius": None},
            )
        ),
        *(
            json.dumps(OPEN | change)
            for change in (
                {"name": "/etc/passwd"},
                {"name": "run.py"},
                {"name": "scan.ply\0.exe"},
                {"name": ""},
                {"name": "a" * 300 + ".ply"},
                {"name": 3},
                {"bytes": 0},
                {"bytes": -1},
                {"bytes": LARGEST_FILE + 1},
                {"bytes": 1.5},
                {"bytes": True},
                {"bytes": "12"},
                {"path": "/etc/passwd"},
            )
        ),
    ],
)
def test_anything_else_is_refused_in_a_line(message):
    with pytest.raises(UserError) as refused:
        understand(message)
    assert "\n" not in str(refused.value) and len(str(refused.value)) < 200
