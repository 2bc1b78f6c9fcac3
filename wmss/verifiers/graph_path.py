"""Is a response a shortest path in the task's graph? The task and its labels are ours, not a paper's.

`data` of a task: {"edges": [["v1", "v2"], ...], "start": "v1", "end": "v2", "distance": 1}, an undirected graph and
the number of edges of a shortest path between two of its nodes.
"""

import json
from collections import defaultdict
from collections.abc import Mapping, Set
from itertools import pairwise
from typing import Any

from wmss.errors import shown
from wmss.records import Task
from wmss.verifiers.interfaces import Ruling

Neighbours = Mapping[str, Set[str]]


def judge_graph_path(task: Task, response: str) -> Ruling:
    """Details: shortest; format, unknown_node, wrong_endpoint, bad_edge, repeated_node, nonshortest, of which the
    first that applies is given. The response has to be a JSON list of node names and nothing else."""
    path = _parse_path(response)
    if path is None:
        return Ruling("unparseable", "format")
    neighbours = _neighbours(task.data["edges"])
    if not set(path) <= neighbours.keys():
        return Ruling("wrong", "unknown_node")
    if not path or (path[0], path[-1]) != (task.data["start"], task.data["end"]):
        return Ruling("wrong", "wrong_endpoint")
    if any(after not in neighbours[before] for before, after in pairwise(path)):
        return Ruling("wrong", "bad_edge")
    if len(set(path)) < len(path):
        return Ruling("wrong", "repeated_node")
    if len(path) - 1 != task.data["distance"]:
        return Ruling("wrong", "nonshortest")
    return Ruling("correct", "shortest")


def check_graph_path(task: Task) -> str | None:
    """A task for `judge_graph_path` has a graph, two of its nodes, and their distance."""
    edges = task.data.get("edges")
    if not isinstance(edges, list) or not edges or not all(_is_edge(edge) for edge in edges):
        return f"data.edges: expected a list of pairs of different node names, got {shown(edges)}; add the graph"
    neighbours = _neighbours(edges)
    for end in ("start", "end"):
        node = task.data.get(end)
        if not isinstance(node, str) or node not in neighbours:
            return f"data.{end}: expected a node of data.edges, got {shown(node)}; correct it"
    distance = _distance(neighbours, task.data["start"], task.data["end"])
    if distance is None:
        return "data.edges: expected a path from data.start to data.end, got none; leave this row out"
    given = task.data.get("distance")
    if type(given) is not int or given != distance:
        return f"data.distance: expected {distance}, the edges of a shortest path, got {shown(given)}; correct it"
    return None


def _parse_path(response: str) -> list[str] | None:
    try:
        path = json.loads(response)
    except (ValueError, RecursionError):
        return None
    return path if isinstance(path, list) and all(isinstance(node, str) for node in path) else None


def _is_edge(edge: Any) -> bool:
    return (
        isinstance(edge, list) and len(edge) == 2 and all(isinstance(node, str) for node in edge) and edge[0] != edge[1]
    )


def _neighbours(edges: list[list[str]]) -> Neighbours:
    neighbours: dict[str, set[str]] = defaultdict(set)
    for a, b in edges:
        neighbours[a].add(b)
        neighbours[b].add(a)
    return dict(neighbours)


def _distance(neighbours: Neighbours, start: str, end: str) -> int | None:
    """Edges of a shortest path, by breadth-first search; None where there is no path."""
    seen, frontier, distance = {start}, {start}, 0
    while frontier and end not in frontier:
        frontier = {after for node in frontier for after in neighbours[node]} - seen
        seen |= frontier
        distance += 1
    return distance if frontier else None
