"""Which knobs exist: names, bounds, units and defaults. One declaration for REST, TOML and the trainer.

Every model is frozen and refuses unknown keys; the text under a field is its help. Importing this loads no torch.
`base` is below all; `hyperparameters`, `weak_driven`, `verifiers` and `improvement` hold the knobs of a method; `job`
puts them together; `reading` validates what a caller wrote, `wording` says what is wrong with it.
"""

from wmss.config.base import METADATA_KEY, PATTERNS, Knobs, MaxLength, MetadataKey, MetadataValue, ModelName
from wmss.config.hyperparameters import Hyperparameters, LoraConfig
from wmss.config.improvement import (
    AcceptConfig,
    CurriculumConfig,
    SamplingConfig,
    SelfImprovementConfig,
    SelfImprovementMethod,
    StopConfig,
    WeakDrivenUpdate,
)
from wmss.config.job import JobSpec, Resources, ScoreSpec, SupervisedMethod, resolve_batch_size, resolve_max_length
from wmss.config.reading import parse_job, parse_scores, read_toml
from wmss.config.verifiers import (
    ChoiceVerifier,
    CodeVerifier,
    ExactVerifier,
    FinalValueVerifier,
    GraphPathVerifier,
    MathVerifier,
    PythonVerifier,
    RegexVerifier,
    SandboxLimits,
    VerifierConfig,
)
from wmss.config.weak_driven import PRESET_BATCH_SIZE, PRESETS, WmssConfig, WmssMethod
from wmss.config.wording import explain

__all__ = [
    "METADATA_KEY",
    "PATTERNS",
    "PRESETS",
    "PRESET_BATCH_SIZE",
    "AcceptConfig",
    "ChoiceVerifier",
    "CodeVerifier",
    "CurriculumConfig",
    "ExactVerifier",
    "FinalValueVerifier",
    "GraphPathVerifier",
    "Hyperparameters",
    "JobSpec",
    "Knobs",
    "LoraConfig",
    "MathVerifier",
    "MaxLength",
    "MetadataKey",
    "MetadataValue",
    "ModelName",
    "PythonVerifier",
    "RegexVerifier",
    "Resources",
    "SamplingConfig",
    "SandboxLimits",
    "ScoreSpec",
    "SelfImprovementConfig",
    "SelfImprovementMethod",
    "StopConfig",
    "SupervisedMethod",
    "VerifierConfig",
    "WeakDrivenUpdate",
    "WmssConfig",
    "WmssMethod",
    "explain",
    "parse_job",
    "parse_scores",
    "read_toml",
    "resolve_batch_size",
    "resolve_max_length",
]
