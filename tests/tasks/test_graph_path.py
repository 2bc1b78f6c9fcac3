"""Shortest-path tasks against a brute-force search over all paths, and their distances by hand."""

import json
from itertools import pairwise

import numpy as np
import pytest

from wmss.tasks.graph_path import MOST_SHORTEST_PATHS, distances, instance_digest, make_task


def all_paths(edges, start, end, longest):
    """Every simple path of at most `longest` edges, by trying them all."""
    links = {frozenset(edge) for edge in edges}
    nodes = {node for edge in edges for node in edge}
    paths, found = [[start]], []
    for _ in range(longest):
        paths = [[*p, node] for p in paths for node in nodes - set(p) if frozenset((p[-1], node)) in links]
        found += [path for path in paths if path[-1] == end]
    return found


def test_distances_and_numbers_of_paths_by_hand():
    square = [("v1", "v2"), ("v2", "v3"), ("v3", "v4"), ("v1", "v4"), ("v4", "v5")]
    distance, paths = distances(square, "v1")
    assert distance == {"v1": 0, "v2": 1, "v4": 1, "v3": 2, "v5": 2}
    assert paths == {"v1": 1, "v2": 1, "v4": 1, "v3": 2, "v5": 1}


@pytest.mark.parametrize("level", [1, 2, 3, 4])
def test_a_task_is_what_it_says(level):
    rng = np.random.default_rng(level)
    for _ in range(25):
        row = make_task(rng, level=level)
        data, answer = row["data"], json.loads(row["answer"])
        edges = {frozenset(edge) for edge in data["edges"]}
        assert len(edges) == len(data["edges"]) == 15  # 12 nodes of average degree 2.5
        assert all(len(edge) == 2 for edge in edges)
        reached, _ = distances(data["edges"], data["start"])
        assert len(reached) == 12  # connected
        paths = all_paths(data["edges"], data["start"], data["end"], level)
        assert {len(path) for path in paths} == {level + 1}
        assert len(paths) == data["shortest_paths"] <= MOST_SHORTEST_PATHS
        assert answer in paths
        assert row["level"] == data["distance"] == level
        # The prompt shows each edge from both sides, and asks for these two ends.
        graph = row["prompt"].partition("Graph:\n")[2].splitlines()
        shown = {node: others.split(", ") for node, others in (line.split(": ") for line in graph[:-1])}
        assert {frozenset((node, other)) for node, others in shown.items() for other in others} == edges
        assert sum(map(len, shown.values())) == 2 * len(edges)
        assert graph[-1] == f"Shortest path from {data['start']} to {data['end']}?"
        assert all(frozenset(pair) in edges for pair in pairwise(answer))


def test_digest_is_of_the_instance_and_not_of_its_writing():
    row = make_task(np.random.default_rng(0), level=2)
    turned = {**row, "data": {**row["data"], "edges": [edge[::-1] for edge in row["data"]["edges"]][::-1]}}
    other = {**row, "data": {**row["data"], "start": row["data"]["end"], "end": row["data"]["start"]}}
    assert instance_digest(turned) == instance_digest(row) != instance_digest(other)
