"""Every way a job fails ends with a message that says what to do, from the exceptions that Ray really raises."""

import pytest
import torch
from ray.exceptions import ActorDiedError, OutOfMemoryError
from ray.train import ControllerError, WorkerGroupError

from services.failures import driver_error, engine_error, memory_error
from wmss.errors import DataError, ScoringError

# The first lines of what Ray 2.60 raised when its memory monitor killed an actor and a training worker.
KILLED = (
    "1 worker(s) were killed due to the node running low on memory. Memory on the node (IP: 192.0.2.2, ID: 06742fe3) "
    "was 2.84GB used / 23.54GB limit (0.120684)\nOOM kill reason: Memory usage 3054342144B exceeded threshold"
)


@pytest.mark.parametrize(
    "error",
    [
        OutOfMemoryError(KILLED),
        WorkerGroupError(f"[Rank 0]\n{KILLED}\n", {0: OutOfMemoryError(KILLED)}),
        ControllerError(OutOfMemoryError(KILLED)),
        WorkerGroupError("torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 2 GiB", {}),
        MemoryError(),
    ],
    ids=["ray", "group", "controller", "cuda", "python"],
)
def test_lack_of_memory_is_named_with_its_knobs(error):
    found = memory_error("the training workers of x", error)
    assert found.code == "out_of_memory"
    assert found.message.startswith("the training workers of x ran out of memory")
    assert "lower micro_batch_tokens, max_length or num_workers" in found.message
    assert len(found.message) < 500


def test_torch_on_a_cpu_names_its_allocator():
    with pytest.raises(RuntimeError) as caught:
        torch.empty(2**60)
    assert memory_error("a worker", caught.value).code == "out_of_memory"


def test_other_failures_are_not_taken_for_memory():
    assert memory_error("x", WorkerGroupError("ZeroDivisionError: division by zero", {})) is None


def test_what_an_engine_refuses_is_told_in_its_own_words():
    """The end of what Serve 2.60 says of a replica that raised while it started."""
    said = (
        "Deploying application scorer-1 failed: Failed to update the deployments ['ScorerReplica'].\n"
        'The deployment failed to start 3 times in a row.\n  File "self_check.py", line 80, in _compare\n'
        "    raise ScoringError(\nwmss.errors.ScoringError: self-check: entropy at position 3 should be 1.0; report it"
    )
    found = engine_error("scorer-1", RuntimeError(said))
    assert isinstance(found, ScoringError)
    assert found.message == "self-check: entropy at position 3 should be 1.0; report it"


def test_engines_say_where_to_look():
    died = engine_error("scorer-1", ActorDiedError())
    failed = engine_error("scorer-1", RuntimeError("Deploying application scorer-1 failed:\nValueError: bad head"))
    assert (died.code, failed.code) == ("engine_failed", "engine_failed")
    assert "scorer-1 died again and again" in died.message
    assert "scorer-1 did not start: ValueError: bad head; see its log under Serve" in failed.message
    assert engine_error("scorer-1", RuntimeError(KILLED)).code == "out_of_memory"


def test_a_driver_passes_on_the_callers_fault_and_owns_up_to_its_own():
    fault = DataError("line 3", param="training_file")
    assert driver_error(fault, log="j-1") is fault
    ours = driver_error(ZeroDivisionError("division by zero"), log="j-1")
    assert (ours.code, ours.param) == ("internal_error", None)
    assert ours.message.startswith("ZeroDivisionError: division by zero; this is the service's fault")
    assert "log of j-1" in ours.message
