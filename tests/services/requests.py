"""Requests to a service in this process that several test files send, and what a refusal looks like."""

import json

from wmss.tasks.arithmetic import make_problems


def upload(api, content=None, **form):
    content = content or "".join(json.dumps(row) + "\n" for row in make_problems(16, seed=1)).encode()
    return api.post("/v1/files", files={"file": ("../odd/train.jsonl", content)}, data={"purpose": "fine-tune"} | form)


def problem(response, status):
    assert response.status_code == status, response.text
    assert response.headers["content-type"] == "application/problem+json"
    assert response.headers["x-request-id"].startswith("req-")
    body = response.json()
    assert body["status"] == status
    assert body["detail"] == body["error"]["message"]
    return body["error"]


def create(api, **values):
    return api.post("/v1/fine_tuning/jobs", json=values)


def validate(api, **values):
    return api.post("/v1/fine_tuning/jobs/validate", json=values)
