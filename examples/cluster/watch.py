"""Watch an organization on the Hub for a new base, and push the ParamΔ model of it.

    python watch.py --organization org --pattern 'org/Base-v.*' \\
        --post org/Chat-v1 --base org/Base-v1 --to me

Meant for a scheduler (cron, or the GitHub Action in watch.yml): it looks once, mixes what is new,
and ends. A base whose model `me/NAME-ParamDelta` exists on the Hub is not mixed again; a push that
was killed continues at the next start. The plan comes first: what does not fit is reported, and no
weights are read for it.
"""

import argparse
import re
import subprocess
import sys

from huggingface_hub import HfApi


def main() -> int:
    """Look once; 1 if a new base could not be mixed."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--organization", required=True, help="whose models are looked at")
    parser.add_argument("--pattern", required=True, help="regular expression for ids of bases")
    parser.add_argument("--post", required=True, help="the post-trained model")
    parser.add_argument("--base", required=True, help="the base that post was trained from")
    parser.add_argument("--to", required=True, help="user or organization that gets the models")
    options = parser.parse_args()
    api, failed = HfApi(), 0
    for model in api.list_models(author=options.organization, sort="created_at", limit=50):
        if not re.fullmatch(options.pattern, model.id) or model.id == options.base:
            continue
        target = f"{options.to}/{model.id.rpartition('/')[2]}-ParamDelta"
        if api.repo_exists(target) and api.file_exists(target, "paramdelta.lock.json"):
            continue
        sources = ["--post", options.post, "--base", options.base, "--new-base", model.id]
        steps = (["plan", *sources], ["mix", *sources, "--push", target])
        for step in steps:
            print("paramdelta", *step, flush=True)
            if subprocess.run(["paramdelta", *step], check=False).returncode != 0:
                failed = 1
                break
    return failed


if __name__ == "__main__":
    sys.exit(main())
