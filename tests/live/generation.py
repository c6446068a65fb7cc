"""Generates with vLLM in a process of its own: ``python -m tests.live.generation REQUEST.json``.

The request: ``prompts``, lists of token ids; ``runs``, one after the other, each with a ``folder``,
``scales``, each of which is set before the prompts are answered, or null; ``adapter``, a folder or
null; ``options`` of ``vllm.LLM``. For each run, tokens by scale go to ``answer``.
"""

import gc
import json
import os
import sys
from pathlib import Path

SETTINGS = {
    "HF_HUB_OFFLINE": "1",
    "VLLM_CPU_KVCACHE_SPACE": "1",
    "VLLM_LOGGING_LEVEL": "WARNING",
    "VLLM_NO_USAGE_STATS": "1",
    "OMP_NUM_THREADS": "1",
}


def answered(run, prompts):
    """Tokens of the prompts by scale; "first": before any was set."""
    from vllm import LLM, SamplingParams
    from vllm.lora.request import LoRARequest

    from paramdelta.live import vllm as plugin

    options = run["options"]
    if run["scales"] is not None:
        options |= {"load_format": plugin.FORMAT, "worker_extension_cls": plugin.WORKER}
    llm = LLM(run["folder"], enforce_eager=True, max_model_len=64, **options)
    greedy = SamplingParams(temperature=0, max_tokens=16, ignore_eos=True)
    adapter = LoRARequest("adapter", 1, run["adapter"]) if run["adapter"] else None

    def answers():
        given = [{"prompt_token_ids": ids} for ids in prompts]
        done = llm.generate(given, greedy, use_tqdm=False, lora_request=adapter)
        return [list(each.outputs[0].token_ids) for each in done]

    found = {"first": answers()}
    for scale in run["scales"] or ():
        plugin.set_scale(llm, scale)
        found[str(scale)] = answers()
    return found


def main(path):
    """Answer a request."""
    from vllm.distributed import cleanup_dist_env_and_memory

    request = json.loads(path.read_text())
    found = []
    for run in request["runs"]:
        found.append(answered(run, request["prompts"]))
        gc.collect()
        cleanup_dist_env_and_memory()
    Path(request["answer"]).write_text(json.dumps(found))


if __name__ == "__main__":
    os.environ |= SETTINGS
    main(Path(sys.argv[1]))
