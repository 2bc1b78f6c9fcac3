"""What imports what: every module of ours read once, and what a fresh process loads."""

import ast
import subprocess
import sys
from functools import cache
from pathlib import Path

ROOT = Path(__file__).parent.parent


@cache
def modules(package: str) -> dict[str, set[str]]:
    """All modules of a package of ours, each with the dotted names that it imports, also inside functions."""
    files = sorted((ROOT / package).rglob("*.py"))
    return {
        ".".join(file.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): _imports_of(file)
        for file in files
    }


def _imports_of(file: Path) -> set[str]:
    names = set()
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
    return names


def node_of(module: str, package: str) -> str | None:
    """The file or folder directly in `package` that a dotted name leads into; None where it leads elsewhere."""
    rest = module.removeprefix(f"{package}.")
    return rest.split(".")[0] if rest != module else None


@cache
def arrows(package: str) -> dict[str, set[str]]:
    """For each file or folder directly in a package, those of the same package that it imports."""
    nodes = {node for module in modules(package.split(".")[0]) if (node := node_of(module, package))}
    found: dict[str, set[str]] = {node: set() for node in nodes}
    for module, names in modules(package.split(".")[0]).items():
        node = node_of(module, package)
        if node is not None:
            found[node] |= ({node_of(name, package) for name in names} & nodes) - {node}
    return found


def circle(package: str) -> list[str]:
    """Files and folders directly in a package that import each other in a circle; empty if there is none."""
    left = {node: set(others) for node, others in arrows(package).items()}
    while free := {node for node, others in left.items() if not others}:
        left = {node: others - free for node, others in left.items() if node not in free}
    return sorted(left)


def loaded_by(*statements: str) -> list[set[str]]:
    """Top-level packages that a fresh process has loaded after each of some statements, run in this order."""
    code = "import sys\n" + "".join(f"{each}\nprint(' '.join(sys.modules))\n" for each in statements)
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return [{name.split(".")[0] for name in line.split()} for line in run.stdout.splitlines()]
