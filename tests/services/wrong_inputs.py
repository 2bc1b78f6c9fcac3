"""Requests that must be refused by their field, with what to do: made against the text of the checks.

The unit suite sends them to the service in this process, the slow suite to one that runs.
"""

import gzip
import json
from dataclasses import dataclass
from typing import Any

ROW = b'{"prompt": "p", "completion": "c"}\n'
QUESTION = [{"role": "user", "content": "3 + 4 = ?"}]
JOBS = "fine_tuning/jobs"
RAW = ("Traceback", "<class", "UploadFile", "pydantic", "recursion depth", "set_int_max_str_digits", "utf-8-sig")
"""What only a programmer understands."""


@dataclass(frozen=True)
class Wrong:
    """One request that must be refused. Of its answer: status, `param`, and a word of what to do."""

    status: int
    param: str | None
    remedy: str
    path: str
    method: str = "POST"
    content: bytes | None = None
    """A body as it stands, sent as JSON."""
    values: dict[str, Any] | None = None
    """A body as JSON; for a job, what it says beside or instead of a good one."""
    parts: tuple[tuple[str, Any], ...] | None = None
    """A multipart form."""
    headers: dict[str, str | bytes] | None = None

    def send(self, request, training_file):
        """The answer to this request; a job that is wrong in something else names `training_file`."""
        body: dict[str, Any] = {"headers": self.headers}
        if self.parts is not None:
            body |= {"files": self.parts}
        elif self.content is not None:
            kind = "multipart/form-data" if self.path == "files" else "application/json"
            body |= {"content": self.content, "headers": {"content-type": kind} | (self.headers or {})}
        elif self.values is not None:
            good = {"model": "qwen3", "training_file": training_file} if self.path.startswith(JOBS) else {}
            body |= {"json": good | self.values}
        return request(self.method, self.path, **body)


def refused(response, wrong):
    """Check that a request was refused as it should be, in our words."""
    assert response.status_code == wrong.status, response.text[:1000]
    assert response.headers["content-type"] == "application/problem+json"
    body = response.json()
    assert body["status"] == wrong.status
    error = body["error"]
    assert set(error) == {"message", "type", "param", "code"}
    assert (error["param"], error["type"]) == (wrong.param, "invalid_request_error"), error["message"]
    assert wrong.remedy in error["message"]
    assert len(response.content) < 5000
    assert not any(sign in error["message"] for sign in RAW)


def file(content, param, remedy, *more, **form):
    """An upload."""
    fields = {"purpose": (None, "fine-tune"), "file": ("rows.jsonl", content)} | form
    return Wrong(400, param, remedy, "files", parts=(*fields.items(), *more))


def job(param, remedy, path=JOBS, **values):
    """A job that is good but for `values`."""
    return Wrong(400, param, remedy, path, values=values)


def wmss(param, remedy, path=JOBS, **knobs):
    """A weak-driven job with these knobs."""
    return job(f"method.wmss{param}", remedy, path, method={"type": "wmss", "wmss": knobs})


def chat(status, param, remedy, path="chat/completions", **values):
    """A question that is good but for `values`."""
    return Wrong(status, param, remedy, path, values={"model": "qwen3", "messages": QUESTION} | values)


def get(status, param, remedy, path):
    """A list or a thing that is asked for."""
    return Wrong(status, param, remedy, path, method="GET")


def row(remedy, **fields):
    """An upload of one row."""
    return file(json.dumps(fields).encode(), "file", remedy)


def chat_row(remedy, *messages):
    """An upload of one chat."""
    return row(remedy, messages=list(messages))


def task(remedy, **fields):
    """An upload of one task that is good but for `fields`."""
    return row(remedy, **({"prompt": "p", "answer": "a"} | fields))


def knob(param, remedy, value):
    """A supervised job with one knob."""
    field = f"method.supervised.hyperparameters.{param}"
    return job(field, remedy, method={"type": "supervised", "supervised": {"hyperparameters": {param: value}}})


def improvement(param, remedy, **knobs):
    """A self-improvement job with these knobs."""
    method = {"type": "self_improvement", "self_improvement": knobs}
    return job(f"method.self_improvement{param}", remedy, validation_file="f", method=method)


def form(param, remedy, content, kind="multipart/form-data; boundary=b"):
    """A form as it stands."""
    return Wrong(400, param, remedy, "files", content=content, headers={"content-type": kind})


def raw(remedy, content, path=JOBS, method="POST", param=None):
    """A body of JSON as it stands."""
    return Wrong(400, param, remedy, path, method=method, content=content)


USER, REPLY = {"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}
_PURPOSE = b'--b\r\ncontent-disposition: form-data; name="purpose"\r\n\r\nfine-tune\r\n'
_FILE = b'--b\r\ncontent-disposition: form-data; name="file"; filename="a.jsonl"\r\n\r\n' + ROW
_DEEP = b"[" * 10**5
_SURROGATE = "half a surrogate pair"

FILES = {
    "no bytes": file(b"", "file", "expected at least one JSON line"),
    "blank lines": file(b" \n\n\t\n", "file", "expected at least one JSON line"),
    "a byte-order mark alone": file(b"\xef\xbb\xbf", "file", "expected at least one JSON line"),
    "NULs": file(bytes(100), "file", "line 1: not valid JSON"),
    "UTF-16 without a mark": file(ROW.decode().encode("utf-16-be"), "file", "line 1: not valid JSON"),
    "UTF-16, big endian": file(ROW.decode().encode("utf-16-be").join((b"\xfe\xff", b"")), "file", "UTF-8"),
    "UTF-32": file(ROW.decode().encode("utf-32"), "file", "JSON lines in UTF-8"),
    "Latin-1": file('{"prompt": "é"}'.encode("latin-1"), "file", "save the file as UTF-8"),
    "lines that end in CR": file(ROW[:-1] + b"\r" + ROW, "file", "line 1: not valid JSON"),
    "comma at the end": file(b'{"prompt": "p", "completion": "c",}', "file", "not valid JSON"),
    "single quotes": file(b"{'prompt': 'p'}", "file", "double quotes"),
    "row that is an array": file(b'["p", "c"]', "file", "write each row as one object on its line"),
    "rows that are numbers": file(b"1\n2", "file", "lines 1, 2: expected a JSON object"),
    "row that is null": file(b"null", "file", "expected a JSON object"),
    "array on several lines": file(b"[\n " + ROW + b"]", "file", "wmss convert"),
    "array behind a mark and blanks": file(b"\xef\xbb\xbf \n [" + ROW + b"]", "file", "wmss convert"),
    "array of tasks": file(b'[{"prompt": "p", "answer": "a"}]', "file", "--to tasks"),
    "gzip of tasks": file(gzip.compress(b'{"prompt": "p", "answer": "a"}'), "file", "--to tasks"),
    "two objects on a line": file(ROW[:-1] + ROW, "file", "Extra data"),
    "object over lines": file(ROW.replace(b", ", b",\n"), "file", "not valid JSON"),
    "CSV": file(b"prompt,completion\np,c\n", "file", "not valid JSON"),
    "gzip's first bytes": file(b"\x1f\x8b", "file", "wmss convert"),
    "Parquet": file(b"PAR1", "file", "write its rows as JSON lines"),
    "zip": file(b"PK\x03\x04", "file", "write its rows as JSON lines"),
    "pickle": file(b"\x80\x04}.", "file", "UTF-8"),
    "row of ten megabytes, cut": file(b'{"prompt": "' + b"a" * 10**7, "file", "not valid JSON"),
    "key of ten megabytes": row("rename them", **{"k" * 10**7: 1}),
    "a hundred thousand keys": row("rename them", **{str(key): key for key in range(10**5)}),
    "number of thousands of digits": file(b'{"prompt": 1' + b"0" * 5000 + b"}", "file", "thousands of digits"),
    "row nested too deeply": file(b'{"prompt": ' + _DEEP, "file", "nested too deeply"),
    "half a surrogate pair as a key": file(b'{"\\uD800": "p", "completion": "c"}', "file", _SURROGATE),
    "surrogate pair in the wrong order": file(b'{"prompt": "\\ude00\\ud83d"}', "file", _SURROGATE),
    # Rows
    "row without keys": row("rename them"),
    "keys in capitals": row("rename them", Prompt="p", Completion="c"),
    "completion of a no-break space": row("expected text", prompt="p", completion="\u00a0"),
    "completion null": row("completion: expected a string", prompt="p", completion=None),
    "one side of TRL's rows": row("prompt: expected a string", prompt=[USER], completion="c"),
    "TRL's rows": row("wmss convert", prompt=[USER], completion=[REPLY]),
    "ShareGPT's rows": row("wmss convert", conversations=[]),
    "messages null": row("non-empty list", messages=None),
    "messages an object": row("non-empty list", messages={"0": USER}),
    "message null": chat_row("messages[0]: expected an object", None),
    "message a pair": chat_row("messages[0]: expected an object", ["user", "q"]),
    "role a list": chat_row("expected one of", USER | {"role": ["user"]}),
    "role with a blank": chat_row("expected one of", USER | {"role": "user "}),
    "content null": chat_row("messages[1].content: expected a string", USER, REPLY | {"content": None}),
    "content in parts": chat_row("wmss convert", USER | {"content": [{"type": "text", "text": "q"}]}),
    "weight 1.0": chat_row("expected 0 or 1, got 1.0", USER, REPLY | {"weight": 1.0}),
    "weight true": chat_row("expected 0 or 1, got True", USER, REPLY | {"weight": True}),
    "weight of the user": chat_row("remove it", USER | {"weight": 1}, REPLY),
    "no weight but 0": chat_row("with weight 1", USER, REPLY | {"weight": 0}),
    "answer of blanks": chat_row("is empty", USER, REPLY | {"content": " "}),
    "system message in the middle": chat_row("may only come first", USER, {"role": "system", "content": "s"}, REPLY),
    "system message alone": chat_row("starting with user", {"role": "system", "content": "s"}),
    "tool calls that are a number": chat_row("leave this row out", USER | {"tool_calls": 7}, REPLY),
    # Tasks
    "level of a million millions": task("expected a whole number from 1", level=10**12),
    "level one above what a table holds": task("expected a whole number from 1", level=2**31),
    "level of four thousand digits": file(
        b'{"prompt":"p","answer":"a","level":1' + b"0" * 4200 + b"}", "file", "level"
    ),
    "level true": task("expected a whole number from 1", level=True),
    "level NaN": task("expected a whole number from 1", level=float("nan")),
    "level 0": task("expected a whole number from 1", level=0),
    "split null": task("expected one of", split=None),
    "split test alone": task('expected a row of split "validation"', split="test"),
    "data null": task("data: expected an object", data=None),
    "data of 101 lists": task("flatten it", data={"x": json.loads("[" * 101 + "]" * 101)}),
    "answer NaN": task("write it as text", answer=float("nan")),
    "answer true": task("leave it out where", answer=True),
    "prompt null": task("prompt: expected a string", prompt=None),
    "answer beside a completion": task("remove one of them", completion="c"),
    "prompt beside messages": task("rename them", messages=[USER]),
    # Forms
    "purpose in capitals": file(ROW, "purpose", 'expected "fine-tune"', purpose=(None, "Fine-tune")),
    "field without a name": form("", "expected file and purpose", _PURPOSE.replace(b"purpose", b"") + b"--b--\r\n"),
    "purpose of two megabytes": file(ROW, None, "curl -F", purpose=(None, "x" * 2**21)),
    "form that is cut": form("file", "required", _PURPOSE + _FILE),
    "form with another boundary": form(None, "curl -F", b"--c\r\n\r\n--c--\r\n"),
    "form with an empty boundary": form(None, "curl -F", b"x", "multipart/form-data; boundary="),
    "part without a name": form(None, "curl -F", b"--b\r\ncontent-disposition: form-data\r\n\r\nx\r\n--b--\r\n"),
    "part without a header": form(None, "curl -F", b"--b\r\n\r\nx\r\n--b--\r\n"),
    "header that is no ASCII": form(None, "curl -F", b"--b\r\n\xff: x\r\n\r\nx\r\n--b--\r\n"),
    "name of a file of 100,000 letters": form(None, "curl -F", _FILE.replace(b"a.jsonl", b"a" * 10**5)),
    "two thousand fields": form(
        None, "curl -F", b"&".join(b"a%d=1" % n for n in range(2000)), "application/x-www-form-urlencoded"
    ),
    "file in a form of text": form("file", "curl -F", b"purpose=fine-tune&file=x", "application/x-www-form-urlencoded"),
    "JSON in place of a form": form("file", "required", b'{"purpose": "fine-tune"}', "application/json"),
    "broken JSON in place of a form": form(None, "not usable JSON", b"{", "application/json"),
}

JOB_BODIES = {
    "broken JSON where no body is read": raw("not usable JSON", b"{", f"{JOBS}/x/cancel"),
    "deep JSON where no body is read": raw("nested too deeply", _DEEP, f"{JOBS}/x/cancel"),
    "long number where no body is read": raw("thousands of digits", b"1" * 5000, f"{JOBS}/x/cancel"),
    "broken JSON with a GET": raw("not usable JSON", b"{", "models", "GET"),
    "broken JSON with a DELETE": raw("not usable JSON", b"{", "files/x", "DELETE"),
    "byte-order mark, then no job": raw("required field is missing", b"\xef\xbb\xbf{}", param="model"),
    "UTF-16": raw("expected UTF-8", '{"model": "m"}'.encode("utf-16")),
    "deep JSON": raw("nested too deeply", _DEEP),
    "null": raw("expected a JSON object", b"null"),
    "an array": raw("expected a JSON object", b"[]"),
    "nothing": raw("expected a JSON object", b""),
    "text/plain": Wrong(400, None, "application/json", JOBS, content=b"{}", headers={"content-type": "text/plain"}),
    "half a surrogate pair as a field": raw(_SURROGATE, b'{"\\ud800": 1}'),
    "half a surrogate pair in a model": raw(_SURROGATE, b'{"model": "\\udfff", "training_file": "f"}'),
    "half a surrogate pair in metadata": raw(_SURROGATE, b'{"metadata": {"a": "\\ud800"}}'),
    "half a surrogate pair in a chat": raw(_SURROGATE, b'{"messages": [{"content": "\\ud800"}]}', "chat/completions"),
    "half a surrogate pair in scores": raw(_SURROGATE, b'{"\\ud800": 1}', "entropy_scores"),
    "half a surrogate pair in a checkpoint": raw(_SURROGATE, b'{"\\ud800": 1}', "weak_checkpoints"),
    "field of a name that pydantic uses": job("str", "unknown field", str=1),
    "field that begins as pydantic's": job("list[x", "unknown field", **{"list[x": 1}),
    "field without a name": job("''", "unknown field", **{"": 1}),
    "field with a NUL": job("a\0", "unknown field", **{"a\0": 1}),
    "knob of a name that pydantic uses": knob("int", "unknown field", 1),
    "method null": job("method", "expected an object", method=None),
    "method a list": job("method", "expected an object", method=[]),
    "method without a type": job("method.type", "required field", method={"wmss": {}}),
    "type of a method a list": job("method.type", "expected one of", method={"type": ["wmss"]}),
    "model a list": job("model", "valid string", model=["qwen3"]),
    "model of links in a circle": job("model", "put it there", model="circle"),
    "model with a NUL": job("model", "put it there", model="qwen3\0"),
    "model of 1,024 letters": job("model", "put it there", model="m" * 1024),
    "model of 1,025 letters": job("model", "at most 1024", model="m" * 1025),
    "file of another home": job("training_file", "upload it", training_file="../../etc/passwd"),
    "file with a NUL": job("training_file", "without NUL", training_file="f\0"),
    "seed -1": job("seed", "greater than or equal to 0", seed=-1),
    "seed 2^32": job("seed", "less than 4294967296", seed=2**32),
    "seed as text": job("seed", "valid integer", seed="1"),
    "suffix of 65 letters": job("suffix", "up to 64", suffix="a" * 65),
    "suffix that begins with a dot": job("suffix", "beginning with", suffix=".a"),
    "suffix of full-width letters": job("suffix", "letters, digits", suffix="\uff41"),
    "metadata of 17 pairs": job("metadata", "at most 16", metadata={str(n): "" for n in range(17)}),
    "metadata value of a number": job("metadata.a", "valid string", metadata={"a": 1}),
    "metadata value of 513 letters": job("metadata.a", "up to 512", metadata={"a": "x" * 513}),
    "metadata a list": job("metadata", "expected an object", metadata=[]),
    "no workers": job("resources.num_workers", "greater than or equal to 1", resources={"num_workers": 0}),
    "1,025 workers": job("resources.num_workers", "less than or equal to 1024", resources={"num_workers": 1025}),
    "GPU as a number": job("resources.use_gpu", "valid boolean", resources={"use_gpu": 1}),
    "checkpoint every 0 steps": job("checkpointing.every_steps", "or equal to 1", checkpointing={"every_steps": 0}),
    "hyperparameters where OpenAI had them": job("hyperparameters", "move it", hyperparameters={"n_epochs": 1}),
    "integrations": job("integrations", "remove it", integrations=[{"type": "wandb"}]),
    "batch of 0": knob("batch_size", "greater than or equal to 1", 0),
    "batch of 2^24 and 1": knob("batch_size", "less than or equal to", 2**24 + 1),
    "batch as text": knob("batch_size", "'auto'", "8"),
    "learning rate 0": knob("learning_rate", "greater than 0", 0),
    "learning rate 1.0001": knob("learning_rate", "less than or equal to 1", 1.0001),
    "warm-up of more than all": knob("warmup_ratio", "less than or equal to 1", 1.5),
    "samples of 1 token": knob("max_length", "greater than or equal to 2", 1),
    "LoRA of rank 0": job(
        "method.supervised.hyperparameters.lora.rank",
        "or equal to 1",
        method={"type": "supervised", "supervised": {"hyperparameters": {"lora": {"rank": 0}}}},
    ),
    "two learning rates": job(
        "method.supervised.hyperparameters",
        "remove the multiplier",
        method={
            "type": "supervised",
            "supervised": {"hyperparameters": {"learning_rate": 1e-3, "learning_rate_multiplier": 2}},
        },
    ),
    "λ above 1": wmss(".mixing_weight", "less than or equal to 1", mixing_weight=1.0000001),
    "λ of an end without a schedule": wmss("", "add the other", mixing_weight_end=0.5),
    "coefficients for a draw without entropy": wmss("", "remove them", weighting="uniform", alpha=1),
    "three zeros": wmss("", "at least one above 0", alpha=0, beta=0, gamma=0),
    "shares that are too many": wmss("", "one for each weak model", weak_shares=[0.5, 0.5]),
    "share of 0": wmss(".weak_shares.0", "greater than 0", weak_shares=[0]),
    "16 more weak models": wmss(".more_weak_models", "at most 15", more_weak_models=["m"] * 16),
    "cache of a model in training": wmss("", "weak_update 'frozen'", weak_cache=True),
    "no rounds": wmss(".rounds", "or equal to 1", rounds=0),
    "samples that prompts do not divide": improvement("", "multiple of", samples_per_round=7, samples_per_prompt=2),
    "band of one number": improvement(".curriculum.band", "at least 2", curriculum={"band": [0.1]}),
    "band upside down": improvement(".curriculum", "band", curriculum={"band": [0.9, 0.1]}),
    "greedy, and several samples": improvement("", "raise it", sampling={"temperature": 0}),
    "verifier that is none": improvement(".verifier.type", "expected one of", verifier={"type": "llm"}),
    "verifier without its pattern": improvement(".verifier.pattern", "required", verifier={"type": "regex"}),
    "one choice": improvement(".verifier.choices", "at least 2", verifier={"type": "choice", "choices": ["A"]}),
    "verifier with no time": improvement(
        ".verifier.timeout_s", "greater than 0", verifier={"type": "math", "timeout_s": 0}
    ),
    "program that may use no memory": improvement(
        ".verifier.limits.memory_mb", "or equal to 64", verifier={"type": "code", "limits": {"memory_mb": 1}}
    ),
    "self-improvement without held-out tasks": job(None, "add one", method={"type": "self_improvement"}),
    # Scores and checkpoints
    "scores of no model": job("models", "at least 1", path="entropy_scores", file="f", models=[]),
    "scores of nine models": job("models", "at most 8", path="entropy_scores", file="f", models=["m"] * 9),
    "models as text": job("models", "valid list", path="entropy_scores", file="f", models="m"),
    "models by number": job("models", "valid list", path="entropy_scores", file="f", models={"0": "m"}),
    "scores without a file": job("file", "required", path="entropy_scores", models=["m"]),
    "checkpoint of links in a circle": job("model", "put it there", path="weak_checkpoints", model="circle"),
    "model of the hub without a revision": job("model", "add the revision", path="weak_checkpoints", model="hf:a/b"),
    "model of the hub, misspelt": job(
        "model", "hf:ORGANISATION/NAME@REVISION", path="weak_checkpoints", model="hf:a b@c"
    ),
    "metadata of a checkpoint null in a pair": job(
        "metadata.a", "valid string", path="weak_checkpoints", model="m", metadata={"a": None}
    ),
}

OTHERS = {
    "limit 0": get(400, "limit", "or equal to 1", f"{JOBS}?limit=0"),
    "limit 101": get(400, "limit", "less than or equal to 100", f"{JOBS}?limit=101"),
    "limit with an exponent": get(400, "limit", "valid integer", f"{JOBS}?limit=1e2"),
    "limit in Arabic digits": get(400, "limit", "valid integer", f"{JOBS}?limit=%D9%A5"),
    "limit of five thousand digits": get(400, "limit", "integer", f"{JOBS}?limit=" + "9" * 5000),
    "limit in capitals": get(400, "LIMIT", "expected after, limit", f"{JOBS}?LIMIT=1"),
    "order that is none": get(400, "order", "'asc' or 'desc'", "files?order=up"),
    "cursor with NUL": get(400, "after", "remove it", f"{JOBS}?after=%00"),
    "cursor without anything": get(400, "after", "id of an item", f"{JOBS}?after="),
    "cursor that is no UTF-8": get(400, "after", "id of an item", "files?after=%ff"),
    "parameter that is no UTF-8": get(400, "\ufffd", "unknown query parameter", f"{JOBS}?%ff=1"),
    "filter by no key": get(400, "metadata[]", "1 to 64 characters", f"{JOBS}?metadata[]=x"),
    "filter that is not closed": get(400, "metadata[a", "metadata[key]", f"{JOBS}?metadata[a=x"),
    "filter by 17 pairs": get(
        400, "metadata", "at most 16", f"{JOBS}?" + "&".join(f"metadata[{n}]=" for n in range(17))
    ),
    "filter by two values": get(400, "metadata[a]", "different values", f"{JOBS}?metadata[a]=1&metadata[a]=2"),
    "file of the wrong kind of id": get(404, "file_id", "there is no file", "files/ftjob-1"),
    "scores by the id of a job": get(404, "scores_id", "there is no", "entropy_scores/ftjob-1"),
    "checkpoint by the id of a file": get(404, "checkpoint_id", "there is no", "weak_checkpoints/file-1"),
    "model with NUL": get(404, "model", "there is no model", "models/a%00"),
    "samples of round 0": get(400, "round", "or equal to 1", f"{JOBS}/x/samples?round=0"),
    "samples above NaN": get(400, "min_weight", "finite", f"{JOBS}/x/samples?min_weight=nan"),
    "samples by a column that is none": get(400, "sort", "expected one of", f"{JOBS}/x/samples?sort=--line"),
    "samples at line 2^63": get(400, "line", "less than", f"{JOBS}/x/samples?line={2**63}"),
    "responses by a label that is none": get(400, "label", "'correct'", f"{JOBS}/x/rollouts?label=right"),
    "responses of level 2^31": get(400, "level", "less than", f"{JOBS}/x/rollouts?level={2**31}"),
    "table as CSV": get(400, "format", "'parquet' or 'jsonl'", "entropy_scores/x/content?format=csv"),
    "table of model -1": get(400, "model", "or equal to 0", "entropy_scores/x/content?model=-1"),
    "route that is none": get(404, None, "/docs", "foo"),
    "method that is none": Wrong(405, None, "/docs", "models", method="PATCH"),
    "key of 256 letters": Wrong(
        400, "idempotency-key", "at most 255", JOBS, values={}, headers={"idempotency-key": "a" * 256}
    ),
    "retries that are no number": Wrong(
        400, "x-stainless-retry-count", "valid integer", JOBS, values={}, headers={"x-stainless-retry-count": "x"}
    ),
    "chat with links in a circle": chat(404, "model", "put it there", model="circle"),
    "chat of texts": chat(400, "messages.0", "expected an object", messages=["hi"]),
    "chat as text": chat(400, "messages", "valid list", messages="hi"),
    "prompt an object": chat(400, "prompt", "valid string or a valid list", path="completions", prompt={}),
}

REQUESTS = (
    {f"files: {name}": wrong for name, wrong in FILES.items()}
    | {f"bodies: {name}": wrong for name, wrong in JOB_BODIES.items()}
    | {f"others: {name}": wrong for name, wrong in OTHERS.items()}
)
