"""What is in the files of a job: rows, tokens, lengths, levels, and one row as the model sees it."""

from collections import Counter
from itertools import pairwise
from pathlib import Path

import numpy as np
from transformers import PreTrainedTokenizerBase

from wmss.data.tokenization import tokenize_samples
from wmss.models.loading import load_tokenizer
from wmss.records import TokenizedSample
from wmss.rounds.before.preflight import MAX_LINES, FileContent
from wmss.rounds.before.report import FileFigures, LevelFigures, RenderedSample, Segment, TaskFigures
from wmss.rounds.before.task_files import TaskFiles


def file_figures(content: FileContent, tokenizer: PreTrainedTokenizerBase) -> FileFigures:
    """Rows, tokens and lengths of a file."""
    lengths = np.array([len(sample.input_ids) for sample in content.tokenized])
    num_targets = sum(sample.num_targets for sample in content.tokenized)
    longest = int(lengths.max())
    if content.cut:
        lines = set(content.cut)
        whole = [sample for sample in content.samples if sample.line in lines]
        uncut, _ = tokenize_samples(whole, tokenizer, max_length=2**31, source="")
        longest = max(len(sample.input_ids) for sample in uncut)
    return FileFigures(
        num_rows=len(lengths),
        num_tokens=int(lengths.sum()),
        num_targets=num_targets,
        supervised_share=num_targets / int(lengths.sum()),
        length_min=int(lengths.min()),
        length_median=float(np.median(lengths)),
        length_p95=float(np.percentile(lengths, 95)),
        length_max=int(lengths.max()),
        num_cut=len(content.cut),
        cut_lines=content.cut[:MAX_LINES],
        longest_uncut=longest,
        num_dropped=len(content.dropped),
        dropped_lines=content.dropped[:MAX_LINES],
    )


def rendered(sample: TokenizedSample, tokenizer: PreTrainedTokenizerBase) -> RenderedSample:
    """A row as text, in segments that are supervised or not."""
    mask = sample.target_mask
    borders = [0, *(np.flatnonzero(mask[1:] != mask[:-1]) + 1).tolist(), len(mask)]
    segments = [
        Segment(text=str(tokenizer.decode(sample.input_ids[start:end].tolist())), supervised=bool(mask[start]))
        for start, end in pairwise(borders)
    ]
    return RenderedSample(line=sample.line, num_tokens=len(mask), segments=segments)


def task_figures(base: Path, files: TaskFiles) -> TaskFigures:
    """Tasks by level, and lengths of the prompts."""
    counts = Counter((task.split, task.level) for task in files.held_out.tasks)
    levels: list[int | None] = [*files.training.levels] or [None]
    strange = {task.level for task in files.held_out.tasks} - set(levels)
    lengths = np.array([len(prompt) for prompt in files.training.prompts])
    return TaskFigures(
        levels=[
            LevelFigures(
                level=level,
                num_training=sum(task.level == level for task in files.training.tasks),
                num_validation=counts["validation", level],
                num_test=counts["test", level],
                num_ood=counts["ood", level],
            )
            for level in [*levels, *sorted(strange, key=str)]
        ],
        prompt_min=int(lengths.min()),
        prompt_median=float(np.median(lengths)),
        prompt_max=int(lengths.max()),
        end_token_ids=files.end_token_ids,
        first_prompt=str(load_tokenizer(base).decode(files.training.prompts[0])),
    )
