"""All benchmarks, one after the other: `make bench`."""

import json

from benchmarks import loss_op

for benchmark in (loss_op,):
    for line in benchmark.run():
        print(json.dumps(line), flush=True)
