"""Generates with vLLM in a process of its own: ``python -m tests.live.generation REQUEST.json``.

The request: ``prompts``, lists of token ids; ``runs``, each with a ``folder``,
``scales``, each of which is set before the prompts are answered, or null; ``adapter``, a folder or
null; ``options`` of ``vllm.LLM``. For each run, tokens by scale go to ``answer``.
"""

import json
import os
import sys
import traceback
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
    """Answer a request. Each run has a process: vLLM cannot start twice in one."""
    import vllm  # noqa: F401 - so that the processes need not

    request = json.loads(path.read_text())
    found = []
    for run in request["runs"]:
        answer = path.with_name("run.json")
        child = os.fork()
        if not child:
            try:
                answer.write_text(json.dumps(answered(run, request["prompts"])))
                os._exit(0)
            finally:
                traceback.print_exc()
                os._exit(1)
        if os.waitpid(child, 0)[1]:
            sys.exit(f"{run['folder']}: failed")
        found.append(json.loads(answer.read_text()))
    Path(request["answer"]).write_text(json.dumps(found))


if __name__ == "__main__":
    os.environ |= SETTINGS
    main(Path(sys.argv[1]))
