"""Shortest paths: every label, and tasks whose data is of no use; distances against a search by matrix powers."""

import json
import random

import numpy as np
import pytest

from tests.verifiers.tasks import make_task
from wmss.records import Task
from wmss.verifiers.graph_path import check_graph_path, judge_graph_path

#   a - b - c - d      and a - e - f - d as long as it
#    \_____________ g - d makes a shorter one, a - g - d
EDGES = [["a", "b"], ["b", "c"], ["c", "d"], ["a", "g"], ["g", "d"], ["c", "g"]]
TASK = make_task(edges=EDGES, start="a", end="d", distance=2)


@pytest.mark.parametrize(
    ("response", "detail"),
    [
        ('["a", "g", "d"]', "shortest"),
        (' ["a","g","d"]\n', "shortest"),
        ('The path is ["a", "g", "d"]', "format"),
        ('```json\n["a", "g", "d"]\n```', "format"),
        ("a, g, d", "format"),
        ('{"path": ["a", "g", "d"]}', "format"),
        ('["a", 3]', "format"),
        ("", "format"),
        ("[" * 100_000, "format"),
        ('["a", "x", "d"]', "unknown_node"),
        ("[]", "wrong_endpoint"),
        ('["a", "g"]', "wrong_endpoint"),
        ('["d", "g", "a"]', "wrong_endpoint"),
        ('["a", "d"]', "bad_edge"),
        ('["a", "c", "d"]', "bad_edge"),
        ('["a", "b", "a", "g", "d"]', "repeated_node"),
        ('["a", "b", "c", "d"]', "nonshortest"),
    ],
)
def test_every_label(response, detail):
    label = {"shortest": "correct", "format": "unparseable"}.get(detail, "wrong")
    assert judge_graph_path(TASK, response) == (label, detail)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"edges": []}, "data.edges"),
        ({"edges": [["a", "b", "c"]]}, "data.edges"),
        ({"edges": [["a", "a"]]}, "data.edges"),
        ({"edges": "a-b"}, "data.edges"),
        ({"start": "x"}, "data.start"),
        ({"end": 3}, "data.end"),
        ({"distance": 3}, "data.distance: expected 2"),
        ({"distance": 2.0}, "data.distance"),
        ({"distance": True}, "data.distance"),
        ({"edges": [["a", "b"], ["c", "d"]]}, "expected a path"),
    ],
)
def test_unusable_tasks(changed, message):
    assert message in (check_graph_path(make_task(**(TASK.data | changed))) or "")


def test_usable_tasks_have_the_distance_that_matrix_powers_give():
    rng = random.Random(0)
    nodes = [f"v{i}" for i in range(9)]
    for _ in range(100):
        edges = [rng.sample(nodes, 2) for _ in range(11)]
        adjacency = np.zeros((9, 9), dtype=int)
        for a, b in edges:
            adjacency[nodes.index(a), nodes.index(b)] = adjacency[nodes.index(b), nodes.index(a)] = 1
        start, end = rng.sample([node for edge in edges for node in edge], 2)
        walks = [np.linalg.matrix_power(adjacency, k)[nodes.index(start), nodes.index(end)] for k in range(9)]
        distance = next((k for k, count in enumerate(walks) if count), None)
        problem = check_graph_path(make_task(edges=edges, start=start, end=end, distance=distance))
        assert (problem is None) == (distance is not None), (edges, start, end, distance, problem)


def test_data_survives_json():
    task = Task(line=1, data=json.loads(json.dumps(TASK.data)))
    assert check_graph_path(task) is None
