"""Every causal language model that both vLLM and transformers know, as a tiny random model: what of the product holds.

python -m benchmarks.families [--family NAME ...] [--engine] [--write-docs]

`docs/models.md` is the result. Each family is judged in a process of its own, with limits on memory and time.
"""
