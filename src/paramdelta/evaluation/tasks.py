"""Tasks of our own, in the form that lm-evaluation-harness takes, and how they score answers."""

import json
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from paramdelta.documents import parse_json
from paramdelta.errors import UsageError
from paramdelta.evaluation import calls
from paramdelta.evaluation.execution import passes
from paramdelta.evaluation.suite import Task

Document = Mapping[str, Any]
Scorer = Callable[[Document, str], float]

# The Hub's data set of each, for runs without --data.
_HUB = {
    "humaneval": ("openai/openai_humaneval", None),
    "mbpp": ("google-research-datasets/mbpp", "full"),
    "math": ("HuggingFaceH4/MATH-500", None),
}
_MBPP_SHOTS = (
    (
        "Write a function to find the similar elements from the given two tuple lists.",
        (
            "def similar_elements(test_tup1, test_tup2):\n"
            "  res = tuple(set(test_tup1) & set(test_tup2))\n  return (res)"
        ),
        "assert similar_elements((3, 4, 5, 6),(5, 7, 4, 10)) == (4, 5)",
    ),
    (
        "Write a python function to identify non-prime numbers.",
        (
            "import math\ndef is_not_prime(n):\n    result = False\n"
            "    for i in range(2,int(math.sqrt(n)) + 1):\n        if n % i == 0:\n"
            "            result = True\n    return result"
        ),
        "assert is_not_prime(2) == False",
    ),
    (
        (
            "Write a function to find the largest integers from a given list of numbers using heap "
            "queue algorithm."
        ),
        (
            "import heapq as hq\ndef heap_queue_largest(nums,n):\n"
            "  largest_nums = hq.nlargest(n, nums)\n  return largest_nums"
        ),
        "assert heap_queue_largest([25, 35, 22, 85, 14, 65, 75, 22, 58],3)==[85, 75, 65]",
    ),
)
_DEFINITION = re.compile(r"^(?:def|class|import|from|@)\b", re.MULTILINE)


def configuration(task: Task, same: Callable[[str, str], bool]) -> dict[str, Any]:
    """The configuration of a task of our own. ``same``: whether two answers in LaTeX are equal."""
    own = task.own or ""
    score = {"math": lambda d, t: math(d, t, same)}.get(own) or SCORERS[own]
    path, name = _HUB.get(own, (None, None))
    return {
        "task": task.name,
        "output_type": "generate_until",
        "dataset_path": path,
        "dataset_name": name,
        "test_split": "test",
        "doc_to_text": _PROMPTS[own],
        "doc_to_target": _target,
        "gen_prefix": "Here is the completed function:\n```python\n{{prompt}}"
        if own == "humaneval"
        else None,
        "num_fewshot": 0,
        "generation_kwargs": {"do_sample": False, "until": [], "max_gen_toks": _LONGEST[own]},
        "process_results": lambda document, results: {"score": score(document, results[0])},
        "metric_list": [{"metric": "score", "aggregation": "mean", "higher_is_better": True}],
    } | dict(task.settings)


def questions(path: Path, sets: tuple[str, ...]) -> list[dict[str, Any]]:
    """Questions with one right answer, from a JSON file: a list, or a mapping of lists by set.

    Raises:
        UsageError: the file is not of this form, or lacks a set.
    """
    try:
        read = parse_json(path.read_bytes())
        parts = [read[name] for name in sets or read] if isinstance(read, dict) else [read]
        return [
            {"question": str(r["question"]), "answer": str(r["answer"])} for p in parts for r in p
        ]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UsageError(
            "not a file of questions",
            code="invalid-questions",
            where=str(path),
            expected='[{"question": …, "answer": …}, …], or a mapping of sets to such lists',
            got=f"{type(error).__name__}: {error}",
        ) from None


# -- prompts ---------------------------------------------------------------------------------------


def _mbpp_prompt(document: Document) -> str:
    shots = [
        f"Task: {text}\nYour code should pass this test:\n{test}\n```python\n{code}\n```\n"
        for text, code, test in _MBPP_SHOTS
    ]
    tests = "\n".join(document["test_list"])
    return (
        "Write Python code for each task. Answer with a code block.\n\n"
        + "\n".join(shots)
        + f"\nTask: {document['text']}\nYour code should pass these tests:\n{tests}\n"
    )


def _calls_prompt(document: Document) -> str:
    messages = parse_json(document["messages"].encode())
    said = "\n\n".join(str(message["content"]) for message in messages)
    functions = json.dumps(parse_json(document["functions"].encode()), indent=4, ensure_ascii=False)
    return f"{calls.SYSTEM}{functions}\n\n{said}"


def _target(document: Document) -> str:
    """What is shown as the right answer."""
    for key in ("answer", "answers", "canonical_solution", "code"):
        if key in document:
            return str(document[key])
    return ""


_PROMPTS: dict[str, Any] = {
    "questions": "{{question}}",
    "math": "Solve the following math problem. Reason step by step, and put your final answer "
    "within \\boxed{}.\n\nProblem: {{problem}}",
    "humaneval": "Write a solution to the following problem and make sure that it passes the "
    "tests:\n```python\n{{prompt}}\n```\n",
    "mbpp": _mbpp_prompt,
    "calls": _calls_prompt,
}
_LONGEST = {"questions": 32, "math": 1024, "humaneval": 1024, "mbpp": 512, "calls": 512}


# -- scores ----------------------------------------------------------------------------------------


def question(document: Document, text: str) -> float:
    """1 if the answer is exactly the right one."""
    return float(text.strip() == document["answer"])


def math(document: Document, text: str, same: Callable[[str, str], bool]) -> float:
    """1 if the last boxed expression is the answer."""
    found = boxed(text)
    return float(found is not None and same(found, document["answer"]))


def boxed(text: str) -> str | None:
    r"""What the last ``\boxed{…}`` of a text holds; None if there is none."""
    start = text.rfind("\\boxed{")
    if start < 0:
        return None
    depth, begin = 1, start + len("\\boxed{")
    for end in range(begin, len(text)):
        depth += {"{": 1, "}": -1}.get(text[end], 0)
        if depth == 0:
            return text[begin:end]
    return None


def humaneval(document: Document, text: str) -> float:
    """1 if the completed function passes the tests."""
    program = (
        f"{completed(document['prompt'], text)}\n\n{document['test']}\n\n"
        f"check({document['entry_point']})\n"
    )
    return float(passes(program))


def completed(prompt: str, text: str) -> str:
    """The function of a completion that continues the prompt, or that repeats it as a whole."""
    repeated = re.search(r"```(?:python)?\n(.*?)(?:\n```|$)", text, re.DOTALL)
    if repeated is not None and _DEFINITION.search(repeated[1]):
        return f"{prompt}\n    pass\n\n{repeated[1]}"
    return prompt + text.split("```")[0]


def mbpp(document: Document, text: str) -> float:
    """1 if the code passes the tests."""
    block = re.search(r"```(?:python)?\n(.*?)(?:\n```|$)", text, re.DOTALL)
    code = block[1] if block is not None else text.split("```")[0]
    setup = document.get("test_setup_code") or ""
    return float(passes("\n".join([code, setup, *document["test_list"]])))


def made_calls(document: Document, text: str) -> float:
    """1 if the completion makes the right calls."""
    functions, answers = (parse_json(document[key].encode()) for key in ("functions", "answers"))
    return float(calls.is_right(text, functions, answers))


SCORERS: dict[str, Scorer] = {
    "questions": question,
    "humaneval": humaneval,
    "mbpp": mbpp,
    "calls": made_calls,
}
