"""The chat engine: vLLM's own OpenAI server inside a Ray Serve replica.

Run as a Ray job, which ends when the engine answers:  python -m services.chat.engine APP CHECKPOINT MODEL
"""

import sys
import types
from pathlib import Path
from typing import Any

import ray
from ray import serve

from services.engines.replicas import ENGINE_DEPLOYMENT, deploy
from wmss.startup import quick_imports


class ChatReplica:
    """Answers /v1/chat/completions and /v1/completions for one checkpoint, many requests at a time."""

    def __init__(self, checkpoint: str, model: str, on_gpu: bool) -> None:
        with quick_imports():
            from vllm.engine.arg_utils import AsyncEngineArgs
            from vllm.entrypoints.launchers.cli_args import make_arg_parser
            from vllm.utils.argparse_utils import FlexibleArgumentParser
            from vllm.v1.engine.async_llm import AsyncLLM

        options = [
            *("--model", checkpoint, "--served-model-name", model),
            # As long as its memory for keys and values allows, up to the model's context.
            *("--max-model-len", "auto"),
            *("--dtype", "auto" if on_gpu else "float32"),
            "--enforce-eager",
            "--disable-log-stats",
        ]
        self._options = make_arg_parser(FlexibleArgumentParser()).parse_args(options)
        self._engine = AsyncLLM.from_engine_args(AsyncEngineArgs.from_cli_args(self._options))

    async def __serve_build_asgi_app__(self) -> Any:
        """Called by Serve once the engine is up; its HTTP requests go to what this returns."""
        from vllm.entrypoints.launchers.api_server.app_state import init_app_state
        from vllm.entrypoints.launchers.app import build_app

        from services.chat.control_tokens import RefusingControlTokens
        from wmss.data.rendering import Renderer
        from wmss.models.loading import load_tokenizer

        tasks = await self._engine.get_supported_tasks()
        app = build_app(self._options, supported_tasks=tasks, model_config=self._engine.model_config)
        await init_app_state(self._engine, app.state, self._options, tasks)
        # vLLM stops its uvicorn server when the engine dies. Here Serve does that, through `check_health`.
        app.state.server = types.SimpleNamespace()
        return RefusingControlTokens(app, Renderer(load_tokenizer(Path(self._options.model))))

    async def check_health(self) -> None:
        """Raises when the engine's process has died; Serve then starts a new replica."""
        await self._engine.check_health()


def main(app: str, checkpoint: str, model: str) -> None:
    """Deploy the engine as the application `app`, at the path `/app` of Serve's HTTP proxy."""
    ray.init(address="auto")
    use_gpu = ray.cluster_resources().get("GPU", 0) > 0
    options = ENGINE_DEPLOYMENT | {"max_ongoing_requests": 64}
    deployment = serve.deployment(serve.ingress()(ChatReplica)).options(**options)
    deploy(deployment, app, checkpoint, model, use_gpu, use_gpu=use_gpu, route_prefix=f"/{app}")


if __name__ == "__main__":
    main(*sys.argv[1:])
