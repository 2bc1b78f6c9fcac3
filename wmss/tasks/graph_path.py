"""Shortest paths in small random graphs: a task of our own for language models; a level is a path's length.

The prompt lists every node's neighbours and works one example; the answer is a JSON list of node names. `data` holds
the edges, the two ends and their distance, which is what the verifier `graph_path` reads: any shortest path is right.

Our reconstruction of a "synthetic graph reasoning task"; the paper's own (arXiv 2602.10014) could not be read.
"""

import hashlib
import json
from typing import Any

import numpy as np

Edge = tuple[str, str]

AVERAGE_DEGREE = 2.5
MOST_SHORTEST_PATHS = 3
_TRIES_FOR_FEW_PATHS = 20
_NUM_LABELS = 100

_EXAMPLE = """\
Find a shortest path in an undirected graph. Reply with only a JSON list of node names, from the first node to the last.

Example:
v1: v2, v5
v2: v1, v3
v3: v2
v5: v1
Shortest path from v5 to v2?
["v5", "v1", "v2"]
"""


def make_task(rng: np.random.Generator, *, level: int, num_nodes: int = 12) -> dict[str, Any]:
    """One row of a task file: two nodes at distance `level` in a connected simple graph.

    Graphs are drawn until one has such a pair; in the first 20 that have, a pair with at most three shortest paths is
    looked for. `data.shortest_paths` counts them. The answer is the first shortest path in the order of the labels.

    Args:
        level: from 1; up to 4 is found quickly among 12 nodes, up to 6 among 20.
    """
    assert 1 <= level < num_nodes, f"expected a level from 1 to {num_nodes - 1}, got {level}"
    best: dict[str, Any] | None = None
    for _ in range(_TRIES_FOR_FEW_PATHS):
        task = _any_task(rng, level=level, num_nodes=num_nodes)
        if task["data"]["shortest_paths"] <= MOST_SHORTEST_PATHS:
            return task
        best = task if best is None or task["data"]["shortest_paths"] < best["data"]["shortest_paths"] else best
    assert best is not None
    return best


def distances(edges: list[Edge], start: str) -> tuple[dict[str, int], dict[str, int]]:
    """Distance from `start` and number of shortest paths, of every node that can be reached."""
    neighbours = _neighbours(edges)
    distance, paths = {start: 0}, {start: 1}
    frontier = [start]
    while frontier:
        reached: list[str] = []
        for node in frontier:
            for other in neighbours[node]:
                if other not in distance:
                    distance[other], paths[other] = distance[node] + 1, 0
                    reached.append(other)
                if distance[other] == distance[node] + 1:
                    paths[other] += paths[node]
        frontier = reached
    return distance, paths


def instance_digest(row: dict[str, Any]) -> str:
    """SHA-256 of the graph and its two ends, the same however edges are ordered and turned."""
    data = row["data"]
    content = [sorted(sorted(edge) for edge in data["edges"]), data["start"], data["end"]]
    return hashlib.sha256(json.dumps(content).encode()).hexdigest()


def _any_task(rng: np.random.Generator, *, level: int, num_nodes: int) -> dict[str, Any]:
    while True:
        edges = _graph(rng, num_nodes)
        nodes = sorted({node for edge in edges for node in edge}, key=_number)
        start = nodes[rng.integers(num_nodes)]
        distance, paths = distances(edges, start)
        ends = [node for node in nodes if distance[node] == level]
        if ends:
            break
    end = ends[rng.integers(len(ends))]
    lines = [
        f"{node}: {', '.join(sorted(others, key=_number))}"
        for node, others in sorted(_neighbours(edges).items(), key=lambda item: _number(item[0]))
    ]
    prompt = "\n".join([_EXAMPLE + "\nGraph:", *lines, f"Shortest path from {start} to {end}?\n"])
    data = {
        "edges": [list(edge) for edge in edges],
        "start": start,
        "end": end,
        "distance": level,
        "shortest_paths": paths[end],
    }
    return {"prompt": prompt, "answer": json.dumps(_first_path(edges, start, end)), "level": level, "data": data}


def _graph(rng: np.random.Generator, num_nodes: int) -> list[Edge]:
    """A random tree, so that the graph is connected, and random edges up to the average degree."""
    labels = [f"v{label}" for label in rng.choice(_NUM_LABELS, size=num_nodes, replace=False)]
    order = rng.permutation(num_nodes)
    chosen = {frozenset((int(order[i]), int(order[rng.integers(i)]))) for i in range(1, num_nodes)}
    while len(chosen) < round(AVERAGE_DEGREE * num_nodes / 2):
        one, other = rng.choice(num_nodes, size=2, replace=False)
        chosen.add(frozenset((int(one), int(other))))
    pairs = [sorted((labels[i] for i in pair), key=_number) for pair in chosen]
    return sorted(((one, other) for one, other in pairs), key=lambda edge: (_number(edge[0]), _number(edge[1])))


def _first_path(edges: list[Edge], start: str, end: str) -> list[str]:
    neighbours = _neighbours(edges)
    to_end, _ = distances(edges, end)
    path = [start]
    while path[-1] != end:
        path.append(min((node for node in neighbours[path[-1]] if to_end[node] == to_end[path[-1]] - 1), key=_number))
    return path


def _neighbours(edges: list[Edge]) -> dict[str, list[str]]:
    neighbours: dict[str, list[str]] = {}
    for one, other in edges:
        neighbours.setdefault(one, []).append(other)
        neighbours.setdefault(other, []).append(one)
    return neighbours


def _number(label: str) -> int:
    return int(label[1:])
