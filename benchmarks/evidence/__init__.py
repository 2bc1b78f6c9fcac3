"""First evidence: weak-driven training against its controls on a task small enough for two CPU cores.

python -m benchmarks.evidence            runs what is missing, a row per (setting, seed, arm), then reports
python -m benchmarks.evidence --report   only writes docs/evidence.md from the stored rows
"""
