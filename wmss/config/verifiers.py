"""Which verifiers there are, and the knobs of each."""

from typing import Annotated, Literal

from pydantic import Field

from wmss.config.base import Knobs


class FinalValueVerifier(Knobs):
    """The value after the last `####`, or in the last `\\boxed{}`, equals the row's answer."""

    type: Literal["final_value"] = "final_value"
    """Which verifier."""


class ExactVerifier(Knobs):
    """The whole response equals the row's answer, but for spaces at both ends."""

    type: Literal["exact"]
    """Which verifier."""
    ignore_case: bool = False
    """Take letters of both cases for equal."""


class RegexVerifier(Knobs):
    """What a pattern finds last in the response equals the row's answer."""

    type: Literal["regex"]
    """Which verifier."""
    pattern: Annotated[str, Field(min_length=1, max_length=1000)]
    """Python regular expression with one group: the answer."""


class ChoiceVerifier(Knobs):
    """The one choice the response ends in equals the row's answer."""

    type: Literal["choice"]
    """Which verifier."""
    choices: Annotated[list[Annotated[str, Field(min_length=1, max_length=100)]], Field(min_length=2, max_length=100)]
    """All the choices there are, e.g. A, B, C, D."""


class MathVerifier(Knobs):
    """Equal as mathematics to the row's answer, by the package math-verify."""

    type: Literal["math"]
    """Which verifier."""
    timeout_s: float = Field(default=5.0, gt=0, le=600)
    """Time for one response; its process is ended then."""


class GraphPathVerifier(Knobs):
    """A shortest path, as a JSON list of node names, in the graph of the row's `data`."""

    type: Literal["graph_path"]
    """Which verifier."""


class SandboxLimits(Knobs):
    """What a program in the sandbox may use; it has no network and may write in a folder of its own only."""

    timeout_s: float = Field(default=5.0, gt=0, le=600)
    """Wall-clock time for one response; the whole process group is ended then."""
    memory_mb: int = Field(default=512, ge=64, le=65_536)
    """Address space of each process, in MiB."""
    processes: int = Field(default=16, ge=1, le=1024)
    """Processes and threads at once."""
    file_mb: int = Field(default=16, ge=1, le=4096)
    """Bytes that may be written, in MiB."""


class CodeVerifier(Knobs):
    """The response's Python code passes the tests in the row's `data.tests`, in a sandbox."""

    type: Literal["code"]
    """Which verifier."""
    limits: SandboxLimits = SandboxLimits()
    """Of one response with all its tests."""


class PythonVerifier(Knobs):
    """A function of yours, `verify(task, response) -> bool`, in the same sandbox."""

    type: Literal["python"]
    """Which verifier."""
    source: Annotated[str, Field(min_length=1, max_length=65_536)]
    """Python source that defines `verify`; `task` is the row as a dict."""
    limits: SandboxLimits = SandboxLimits()
    """Of one call."""


VerifierConfig = Annotated[
    FinalValueVerifier
    | ExactVerifier
    | RegexVerifier
    | ChoiceVerifier
    | MathVerifier
    | GraphPathVerifier
    | CodeVerifier
    | PythonVerifier,
    Field(discriminator="type"),
]
