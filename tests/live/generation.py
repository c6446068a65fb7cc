"""Generates with vLLM in a process of its own: ``python -m tests.live.generation REQUEST.json``.

The request: ``folder``; ``prompts``, lists of token ids; ``scales``, each of which is set before
the prompts are answered, or null; ``options`` of ``vllm.LLM``. The answer, tokens by scale, goes to
``answer``.
"""

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


def main(request):
    """Answer a request."""
    from vllm import LLM, SamplingParams

    from paramdelta.live import vllm as plugin

    options = request["options"]
    if request["scales"] is not None:
        options |= {"load_format": plugin.FORMAT, "worker_extension_cls": plugin.WORKER}
    llm = LLM(request["folder"], enforce_eager=True, max_model_len=64, **options)
    greedy = SamplingParams(temperature=0, max_tokens=16, ignore_eos=True)
    prompts = [{"prompt_token_ids": ids} for ids in request["prompts"]]

    def answers():
        done = llm.generate(prompts, greedy, use_tqdm=False)
        return [list(each.outputs[0].token_ids) for each in done]

    found = {"first": answers()}
    for scale in request["scales"] or ():
        plugin.set_scale(llm, scale)
        found[str(scale)] = answers()
    Path(request["answer"]).write_text(json.dumps(found))


if __name__ == "__main__":
    os.environ |= SETTINGS
    main(json.loads(Path(sys.argv[1]).read_text()))
