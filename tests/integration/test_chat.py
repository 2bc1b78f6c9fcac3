"""Talking to models through the running service: the right weights answer, on real vLLM behind Ray Serve."""

import time

import openai
import pytest
import torch

from services.chat.chat_store import ChatState, ChatStore
from services.jobs.store import Store
from services.settings import Settings
from tests.integration.stack import submit, wait_for, wait_for_end, wmss
from wmss.models.loading import load_model, load_tokenizer
from wmss.records import STRONG_FOLDER

pytestmark = pytest.mark.stack

QUESTION = [{"role": "user", "content": "3 + 4 = ?"}]


@pytest.fixture(scope="module")
def job(stack, files):
    """A short job whose result differs from its base."""
    knobs = {"batch_size": 16, "max_steps": 4, "learning_rate": 1e-2}
    method = {"type": "supervised", "supervised": {"hyperparameters": knobs}}
    job_id = submit(stack, files, method=method, checkpointing={"every_steps": 2})
    job = wait_for_end(stack, job_id)
    assert job.status == "succeeded", job.error
    return job


@pytest.fixture
def chat_store(stack):
    store = Store(Settings(home=stack.home).database)
    yield ChatStore(store)
    store.close()


def ask(stack, model, **options):
    options = {"messages": QUESTION, "temperature": 0, "max_tokens": 12} | options
    return stack.client.chat.completions.create(model=model, **options)


def greedy(folder, num_tokens=12):
    """What transformers answers with the weights in a folder."""
    tokenizer, model = load_tokenizer(folder), load_model(folder)
    ids = tokenizer.apply_chat_template(QUESTION, add_generation_prompt=True, return_dict=False, return_tensors="pt")
    ends = model.generation_config.eos_token_id
    with torch.no_grad():
        for _ in range(num_tokens):
            best = model(ids).logits[0, -1].argmax()
            if int(best) in (ends if isinstance(ends, list) else [ends]):
                break
            ids = torch.cat([ids, best[None, None]], dim=1)
    prompt = tokenizer.apply_chat_template(QUESTION, add_generation_prompt=True, return_dict=False)
    return tokenizer.decode(ids[0, len(prompt) :], skip_special_tokens=True)


def test_result_checkpoint_and_weak_model_answer_with_their_own_weights(stack, job):
    checkpoint = f"{job.fine_tuned_model}:ckpt-sft-2"
    folders = {
        job.fine_tuned_model: stack.home / "models" / job.id,
        checkpoint: stack.home / "runs" / f"{job.id}-sft-1" / "step-00000002" / STRONG_FOLDER,
        "qwen3_other": stack.home / "models" / "qwen3_other",
    }
    answers = {}
    for model, folder in folders.items():
        started = time.monotonic()
        answer = ask(stack, model)
        print(f"{model}: answered after {time.monotonic() - started:.1f} s")
        assert answer.model == model
        assert answer.choices[0].message.content == greedy(folder)
        answers[model] = answer.choices[0].message.content
        assert len(stack.find("ray::ServeReplica", "chat-")) == 1  # the one before it has left
    assert len(set(answers.values())) == 3


def test_streaming_completions_and_refusals(stack):
    """On the engine that the test above left in place."""
    model = "qwen3_other"
    whole = ask(stack, model)
    parts = list(ask(stack, model, stream=True, stream_options={"include_usage": True}))
    text = "".join(part.choices[0].delta.content or "" for part in parts if part.choices)
    assert text == whole.choices[0].message.content
    assert parts[-1].usage.completion_tokens == whole.usage.completion_tokens
    completion = stack.client.completions.create(model=model, prompt="3 + 4", max_tokens=3, temperature=0, logprobs=1)
    assert len(completion.choices[0].logprobs.tokens) == 3
    with pytest.raises(openai.BadRequestError) as caught:
        ask(stack, model, max_tokens=10_000)
    assert caught.value.param == "max_tokens"
    with pytest.raises(openai.BadRequestError) as caught:
        ask(stack, model, temperature=-1)
    assert caught.value.param == "temperature"
    with pytest.raises(openai.NotFoundError) as caught:
        ask(stack, "nobody")
    assert (caught.value.param, caught.value.code) == ("model", "model_not_found")


def test_chat_on_the_command_line(stack):
    answer = wmss(stack, "chat", "qwen3_other", QUESTION[0]["content"], "--temperature", "0", "--max-tokens", "12")
    assert answer.rstrip("\n") == ask(stack, "qwen3_other").choices[0].message.content.rstrip("\n")
    talk = wmss(stack, "chat", "qwen3_other", "--max-tokens", "4", input="3 + 4 = ?\nand 5?\n")
    assert talk.count("> ") == 3


def test_a_model_in_use_is_not_replaced_and_an_idle_engine_leaves(stack, chat_store):
    """A lease in the database stands for a request that another API relays."""
    app = chat_store.engine().app
    lease = chat_store.begin_request(app)
    with pytest.raises(openai.InternalServerError) as caught:
        stack.client.with_options(max_retries=0).chat.completions.create(model="qwen3", messages=QUESTION)
    assert (caught.value.status_code, caught.value.code) == (503, "engine_in_use")
    assert int(caught.value.response.headers["retry-after"]) > 0
    assert chat_store.engine().state == ChatState.READY
    chat_store.end_request(app, lease)
    wait_for(lambda: chat_store.engine() is None, timeout_s=60, what="the idle engine gone")
    assert not stack.find("ray::ServeReplica", "chat-")
    assert not stack.find("VLLM::EngineCore")
