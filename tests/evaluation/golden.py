"""A model of the harness that knows the answers, for tests of what scores."""

import json
from typing import Any


def right(task: str, document: dict[str, Any]) -> str:
    """An answer that must score 1."""
    match task:
        case "mmlu":
            return f"{'ABCD'[document['answer']]}."
        case "mmlu-cot":
            return f"Because.\nThe best answer is {'ABCD'[document['answer']]}."
        case "mmlu-pro":
            return f"Because.\nThe best answer is {document['answer']}."
        case "gsm8k":
            return f"So. The final answer is {document['answer'].split('####')[-1].strip()}"
        case "math":
            return f"Hence \\boxed{{{document['answer']}}}."
        case "arc-challenge":
            return f" {document['answerKey']}"
        case "mgsm":
            return f"The answer is {document['answer_number']}"
        case "humaneval":
            return f"{document['canonical_solution']}\n```\nThat is all."
        case "mbpp":
            return f"Here:\n```python\n{document['code']}\n```\n"
        case "bfcl":
            return calls(json.loads(document["answers"]), json.loads(document["functions"]))
    return str(document["answer"])


def calls(answers: list[dict[str, Any]], functions: list[dict[str, Any]]) -> str:
    """The calls of BFCL's possible answers, with a possible value of each parameter."""
    made = []
    for answer in answers:
        ((name, possible),) = answer.items()
        (needed,) = (f["parameters"].get("required", []) for f in functions if f["name"] == name)
        chosen = {
            key: next((option for option in options if option != ""), [])
            for key, options in possible.items()
            if key in needed or "" not in options
        }
        given = [f"{key}={value(one)!r}" for key, one in chosen.items()]
        made.append(f"{name}({', '.join(given)})")
    return f"[{', '.join(made)}]" if made else "None of the functions can be used."


def value(option: Any) -> Any:
    """The value that a possible answer stands for: in mappings, the first of each list."""
    if isinstance(option, dict):
        chosen = {k: v[0] if isinstance(v, list) else v for k, v in option.items()}
        return {key: value(one) for key, one in chosen.items() if one != ""}
    if isinstance(option, list):
        return [value(item) for item in option]
    return option


def model(task: str, answer: Any) -> Any:
    """A model that gives ``answer(task, document)`` to every question."""
    from lm_eval.api.model import LM

    class Known(LM):
        max_length = 8192

        def generate_until(self, requests, disable_tqdm=False):
            return [answer(task, request.doc) for request in requests]

        def loglikelihood(self, requests, disable_tqdm=False):
            raise NotImplementedError

        def loglikelihood_rolling(self, requests, disable_tqdm=False):
            raise NotImplementedError

        def tok_encode(self, text):
            return text.split()

    return Known()
