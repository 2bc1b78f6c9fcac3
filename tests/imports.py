"""What imports what: every module of ours read once, and what a fresh process loads."""

import ast
import subprocess
import sys
from functools import cache
from importlib.util import find_spec
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
        if isinstance(node, ast.Import | ast.ImportFrom):
            names |= _named(node)
    return names


def _named(node: ast.Import | ast.ImportFrom) -> set[str]:
    if isinstance(node, ast.Import):
        return {alias.name for alias in node.names}
    return {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)} if node.module else set()


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


def not_installed(file: Path) -> set[str]:
    """Packages that the import of a file of ours needs, directly or through others of ours, and that are not here."""
    seen: set[Path] = set()
    missing: set[str] = set()
    waiting = [file]
    while waiting:
        here = waiting.pop()
        if here in seen or not here.is_file() or here == ROOT / "tests/conftest.py":
            continue
        seen.add(here)
        for name in _at_import(ast.parse(here.read_text(encoding="utf-8")).body):
            parts = name.split(".")
            if not (ROOT / parts[0]).is_dir():
                missing |= set() if find_spec(parts[0]) else {parts[0]}
                continue
            for length in range(1, len(parts) + 1):
                place = ROOT.joinpath(*parts[:length])
                waiting += [place / "__init__.py", place.with_suffix(".py")]
    return missing


def _at_import(statements: list[ast.stmt]) -> set[str]:
    """Names that are imported while a module is, not later in its functions, nor for a type checker alone."""
    names: set[str] = set()
    for node in statements:
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            continue
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING":
            continue
        if isinstance(node, ast.Import | ast.ImportFrom):
            names |= _named(node)
        for field in ("body", "orelse", "finalbody"):
            names |= _at_import(getattr(node, field, []))
    return names


def loaded_by(*statements: str, whole: bool = False) -> list[set[str]]:
    """Top-level packages, or modules by their `whole` names, that a fresh process has loaded after each of some
    statements, run in this order."""
    code = "import sys\n" + "".join(f"{each}\nprint(' '.join(sys.modules))\n" for each in statements)
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return [{name if whole else name.split(".")[0] for name in line.split()} for line in run.stdout.splitlines()]
