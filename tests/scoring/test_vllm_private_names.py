"""vLLM moves its own names between minor releases: is every one that we use still there, in the installed release?"""

import json
import os
import subprocess
import sys
from importlib.util import find_spec

import pytest

from tests.imports import ROOT
from tests.scoring.vllm_names import ATTRIBUTES, Use, all_uses, imported, problems


def found_by(uses):
    """Problems, from a process of its own: vLLM's import warns, starts threads and stays for ever."""
    command = [sys.executable, "-m", "tests.scoring.vllm_names"]
    environment = os.environ | {"VLLM_LOGGING_LEVEL": "ERROR", "PYTHONPATH": str(ROOT)}
    run = subprocess.run(command, input=json.dumps(uses), capture_output=True, text=True, cwd=ROOT, env=environment)
    assert run.returncode == 0, run.stderr
    return json.loads(run.stdout.splitlines()[-1])


@pytest.mark.skipif(find_spec("vllm") is None, reason="vLLM is not installed")
def test_every_name_that_we_use_is_in_vllm():
    invented = [
        Use("vllm.v1.engine.core_client", "MPClient", "ensure_immortal", "wmss/a.py"),
        Use("vllm.entrypoints.no_such_module", "anything", None, "services/b.py"),
        Use("vllm", "NoSuchClass", None, "services/c.py"),
    ]
    found = found_by([*all_uses(), *invented])
    assert [each for each in found if not each.startswith(("wmss/a.py", "services/b.py", "services/c.py"))] == []
    assert [each.partition(":")[0] for each in found] == ["wmss/a.py", "services/b.py", "services/c.py"]


def test_the_list_is_read_from_our_source():
    uses = {(use.module, use.name): use.file for use in all_uses()}
    assert uses["vllm.v1.engine.exceptions", "EngineDeadError"] == "wmss/scoring/vllm_engine.py"
    assert uses["vllm.entrypoints.launchers.app", "build_app"] == "services/chat/engine.py"
    source = "import vllm.envs\ndef f():\n    from vllm.a import b, c as d\n    from vllmish import e\nimport torch\n"
    assert imported(source, "x.py") == [
        Use("vllm.envs", None, None, "x.py"),
        Use("vllm.a", "b", None, "x.py"),
        Use("vllm.a", "c", None, "x.py"),
    ]


@pytest.mark.parametrize("file", sorted(ATTRIBUTES))
def test_the_table_names_what_the_file_still_uses(file):
    source = (ROOT / file).read_text(encoding="utf-8")
    attributes = {name for names in ATTRIBUTES[file].values() for name in names}
    assert {name for name in attributes if name not in source} == set()


@pytest.mark.parametrize(
    ("use", "problem"),
    [
        (Use("json", "dumps", None, "a.py"), None),
        (Use("json", None, "loads", "a.py"), None),
        (Use("json.decoder", "JSONDecoder", "strict", "a.py"), None),  # an instance has it
        (Use("dataclasses", "Field", "kw_only", "a.py"), None),  # a slot
        (Use("tests.scoring.vllm_names", "Use", "module", "a.py"), None),
        (Use("json", "dump_all", None, "a.py"), "a.py: json has no dump_all"),
        (Use("json.decoder", "JSONDecoder", "_undo", "a.py"), "a.py: json.decoder.JSONDecoder has no _undo"),
        (Use("json.launchers", "x", None, "a.py"), "a.py: json.launchers cannot be imported: No module named"),
    ],
)
def test_the_checker_tells_what_is_gone_and_which_file_needs_it(use, problem):
    found = problems([use])
    assert len(found) == (problem is not None)
    assert problem is None or found[0].startswith(problem)
