"""The plugin for vLLM: mixes instead of weight files, and another scale in a running server.

vLLM finds `register` and `Endpoint` through entry points of the package. The loader gives it the
weights of the mix whose recipe `live.folder.write_recipe` wrote. `Worker` is added to its workers.
The only module that imports vLLM. Written for vLLM 0.32.

Every process of vLLM imports this module, whether it loads a mix or not, so it imports next to
nothing itself. In particular numba must not be there when vLLM 0.32 starts on a CPU: vLLM looks
through all modules for kernels and fails at one of llvmlite's objects.
"""

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch

FORMAT = "paramdelta"
ROUTE = "/v1/paramdelta/scale"  # below /v1, so that vLLM asks for its API key
WORKER = f"{__name__}.Worker"
METHOD = "paramdelta_set_scale"

_scales: dict[str, float | Sequence[float]] = {}  # by folder: of this process


_registered: list[Any] = []


def register() -> None:
    """Make the load format known to vLLM. Every process of vLLM calls this, some several times."""
    if not _registered:
        from vllm.model_executor.model_loader import register_model_loader

        _registered.append(register_model_loader(FORMAT)(_loader()))


def _loader() -> Any:
    from vllm.model_executor.model_loader.default_loader import DefaultModelLoader
    from vllm.model_executor.model_loader.ep_weight_filter import should_skip_weight

    class Loader(DefaultModelLoader):  # type: ignore[misc]
        """Gives the weights of the mix that the folder of a model describes."""

        def download_model(self, model_config: Any) -> None:
            """Nothing to do: sources on the Hub are fetched when the mix is planned."""

        def get_all_weights(
            self, model_config: Any, model: Any
        ) -> "Iterator[tuple[str, torch.Tensor]]":
            """Names and tensors, one at a time; experts of other ranks are not mixed."""
            from paramdelta.live.folder import read_recipe_of
            from paramdelta.live.weights import Weights
            from paramdelta.planning.planner import make_plan

            folder = model_config.model
            plan = make_plan(read_recipe_of(folder).times(_scales.get(folder, 1.0)))
            plan.check()
            with Weights(plan) as weights:
                weights.expect(weights)
                for name, weight in weights.items():
                    if not should_skip_weight(name, self.local_expert_ids):
                        yield name, weight[...]
                weights.check_sources()
            for source in getattr(model, "secondary_weights", ()):
                yield from self._get_weights_iterator(source)

    return Loader


class Worker:
    """What every worker of vLLM gets beside its own methods (``--worker-extension-cls``)."""

    vllm_config: Any
    reload_weights: Any
    get_model: Any

    def paramdelta_set_scale(self, scale: float | Sequence[float]) -> None:
        """Mix the weights again at another scale, in place."""
        _scales[self.vllm_config.model_config.model] = scale
        self.reload_weights()
        _pack_heads(self.get_model())


def _pack_heads(model: Any) -> None:
    """Prepare output heads again.

    On CPUs vLLM multiplies with a packed copy of a head. It does not renew the copy of a head that
    is the embedding, which has no weights of its own to load.
    """
    from vllm.model_executor.layers import vocab_parallel_embedding as layers

    for head in model.modules():
        if isinstance(head, layers.ParallelLMHead):
            method = head.quant_method
            if isinstance(method, layers.UnquantizedEmbeddingMethod):
                method.process_weights_after_loading(head)


def set_scale(llm: Any, scale: float | Sequence[float]) -> None:
    """Mix the weights of a ``vllm.LLM`` again at another scale; it must not be generating.

    ``scale``: as in `paramdelta.set_scale`. The LLM was made with ``load_format="paramdelta"`` and
    ``worker_extension_cls=paramdelta.live.vllm.WORKER``.
    """
    llm.collective_rpc(METHOD, args=(scale,))
    llm.reset_prefix_cache()


class Endpoint:
    """``GET`` and ``POST /v1/paramdelta/scale`` of vLLM's server.

    vLLM loads it only if it is named in ``VLLM_PLUGINS``, as `paramdelta serve` does.
    """

    name = FORMAT
    required_tasks: tuple[str, ...] | None = None

    def __init__(self) -> None:
        import asyncio

        self.scale: float | Sequence[float] = 1.0
        self._one = asyncio.Lock()

    def attach_router(self, app: Any) -> None:
        """Add the route."""
        app.add_api_route(ROUTE, self.get, methods=["GET"])
        app.add_route(ROUTE, self.post, methods=["POST"])

    async def init_state(self, engine_client: Any, state: Any, args: Any) -> None:
        """Keep the engine and the recipe."""
        from paramdelta.live.folder import read_recipe_of

        self._engine = engine_client
        self._recipe = read_recipe_of(args.model)

    async def get(self) -> Any:
        """The scale now, and the recipe's formula with it."""
        return {"scale": self.scale, "formula": self._recipe.times(self.scale).formula}

    async def post(self, request: Any) -> Any:
        """Finish what is being generated, mix at another scale, forget cached prefixes, go on.

        The body is ``{"scale": 0.8}``, or has a list with a number for each Δ. If mixing fails,
        generation stays paused: some weights are those of the new scale. Setting a scale again
        mixes all of them.
        """
        from fastapi.responses import JSONResponse

        from paramdelta.errors import ParamDeltaError

        try:
            scale = (await request.json())["scale"]
            self._recipe.times(scale)
        except (ParamDeltaError, KeyError, TypeError, ValueError) as error:
            return JSONResponse({"error": str(error)}, 400)
        async with self._one:
            await self._engine.pause_generation(mode="wait", clear_cache=True)
            try:
                await self._engine.collective_rpc(METHOD, args=(scale,))
            except Exception as error:  # noqa: BLE001 - whatever it is, the weights may be a mixture
                return JSONResponse({"error": str(error), "paused": True}, 500)
            self.scale = scale
            await self._engine.resume_generation()
        return await self.get()
