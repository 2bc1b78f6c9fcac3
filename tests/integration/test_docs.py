"""The pages as a reader follows them: every command of the quick start, every block of the REST reference.

pytest -m slow tests/integration/test_docs.py
"""

import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from services.control.supervisor import free_port
from tests.integration.stack import processes_of, wait_for, wait_for_end
from wmss.models.loading import load_model

ROOT = Path(__file__).parents[2]
pytestmark = [pytest.mark.slow, pytest.mark.stack, pytest.mark.timeout(1800)]


def blocks(page, *languages):
    """Fenced blocks of a page with their language, in order."""
    fenced = re.findall(r"^```(\w+)\n(.*?)^```$", (ROOT / "docs" / page).read_text(), flags=re.M | re.S)
    return [(language, text) for language, text in fenced if language in languages]


def bash(text, *, cwd, environment):
    run = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", text], cwd=cwd, env=environment, capture_output=True, text=True
    )
    assert run.returncode == 0, f"{text}\n{run.stdout}\n{run.stderr}"
    print(f"$ {text}{run.stdout}")
    return run.stdout


@pytest.mark.skipif(not (ROOT / ".venv" / "ready").is_file(), reason="the quick start uses the .venv that make makes")
def test_quick_start_word_by_word(tmp_path):
    """As it stands, but for the port (another service may run here), the job's id and where the export goes."""
    environment = os.environ | {"WMSS_HOME": str(tmp_path / "home")}
    job_id, server = None, None
    try:
        for _, text in blocks("quickstart.md", "bash"):
            script = f". .venv/bin/activate\n{text}".replace("ftjob-...", str(job_id))
            script = script.replace(" my-model\n", f" {tmp_path / 'my-model'}\n")
            if "wmss serve" in text:
                script = script.replace("wmss serve", f"exec wmss serve --port {free_port()}")
                server = subprocess.Popen(["bash", "-c", script], cwd=ROOT, env=environment, start_new_session=True)
                wait_for((tmp_path / "home" / "endpoint.json").is_file, timeout_s=120, what="the service")
                continue
            said = bash(script, cwd=ROOT, environment=environment)
            if "wmss submit" in text:
                job_id = re.search(r"ftjob-\w+", said).group()
            if "wmss chat" in text:
                assert "#### Tokyo" in said
    finally:
        if server is not None:
            server.terminate()
            assert server.wait(60) == 0
    assert load_model(tmp_path / "my-model").num_parameters() > 100_000_000
    assert processes_of(tmp_path / "home") == []


def test_rest_reference_block_by_block(stack, files, tmp_path, monkeypatch):
    shutil.copytree(stack.home / "models" / "qwen3", stack.home / "models" / "my-model")
    shutil.copyfile(files / "train.jsonl", tmp_path / "train.jsonl")
    shutil.copyfile(files / "validation.jsonl", tmp_path / "held_out.jsonl")
    monkeypatch.chdir(tmp_path)
    url = stack.endpoint.base_url.removesuffix("/v1")
    names = {}
    for language, text in blocks("rest.md", "python", "bash"):
        here = text.replace("http://127.0.0.1:8000", url)
        if language == "python":
            exec(compile(here, f"rest.md:\n{text}", "exec"), names)
            continue
        assert '"error":{' not in bash(f"URL={url}\n{here}", cwd=tmp_path, environment=stack.environment)
    names["client"].close()
    for job in stack.client.fine_tuning.jobs.list(metadata={"project": "curl"}):
        assert wait_for_end(stack, job.id).status == "succeeded"
