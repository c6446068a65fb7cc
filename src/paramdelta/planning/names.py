"""Which tensor of one checkpoint corresponds to which of another: by name, nothing else.

Two things stand between equal names: a prefix that one class of a modelling library writes and
another does not ("model.", "bert."), and an output head that is tied to the input embedding and
therefore not stored.
"""

import re
from collections.abc import Iterable, Mapping
from typing import Any

from paramdelta.checkpoint.checkpoint import Checkpoint
from paramdelta.checkpoint.tensor import View

# Constants that some libraries store beside the weights. They are copied, never scaled.
_BUFFER = re.compile(
    r"(^|\.)("
    r"position_ids|token_type_ids|inv_freq|original_inv_freq|"
    r"rotary_emb\..*|rotary_pos_emb\..*|cos_cached|sin_cached|"
    r"attn\.bias|attention\.bias|attn\.masked_bias|masked_bias|causal_mask|attn_mask|tril|mask|"
    r"num_batches_tracked|relative_position_index"
    r")$"
)
_MASK = re.compile(r"(^|\.)(attn|attention)\.bias$")

# Output head and the input embedding that it can be tied to, in the names of the common families.
_HEADS = (
    ("lm_head.weight", "embed_tokens.weight"),
    ("lm_head.weight", "wte.weight"),
    ("lm_head.weight", "word_embeddings.weight"),
    ("embed_out.weight", "embed_in.weight"),
    ("output.weight", "tok_embeddings.weight"),
)


def is_buffer(tensor: View) -> bool:
    """Whether the name is that of a constant and not of a weight.

    ``attn.bias`` is GPT-2's causal mask where it is square over its last two axes, and the bias of
    a projection elsewhere.
    """
    if _BUFFER.search(tensor.name) is None:
        return False
    if _MASK.search(tensor.name):
        return len(tensor.shape) >= 2 and tensor.shape[-1] == tensor.shape[-2]
    return True


def aligned(checkpoint: Checkpoint, target: Checkpoint) -> tuple[dict[str, View], str | None]:
    """The checkpoint's tensors under the target's names, and what was done to the names.

    A prefix is added to the names or taken off them if, and only if, that lets more of them agree
    than before. The second value says so (``"+model."``, ``"-model."``), None if nothing was done.
    """
    own: Mapping[str, View] = checkpoint.tensors
    wanted = target.tensors.keys()
    best, change = dict(own), None
    agreeing = len(wanted & own.keys())
    if agreeing == len(own) or not own:
        return best, None
    for prefix in sorted(_prefixes(wanted)):
        # A head that has the same name in both classes stays as it is.
        renamed = {n if n in wanted else prefix + n: tensor for n, tensor in own.items()}
        if len(renamed) == len(own) and len(wanted & renamed.keys()) > agreeing:
            best, change, agreeing = renamed, f"+{prefix}", len(wanted & renamed.keys())
    for prefix in sorted(_prefixes(own)):
        renamed = {n if n in wanted else n.removeprefix(prefix): t for n, t in own.items()}
        if len(renamed) == len(own) and len(wanted & renamed.keys()) > agreeing:
            best, change, agreeing = renamed, f"-{prefix}", len(wanted & renamed.keys())
    return best, change


def _prefixes(names: Iterable[str]) -> set[str]:
    return {name.split(".", 1)[0] + "." for name in names if "." in name}


def head_and_embedding(checkpoints: Iterable[Mapping[str, View]]) -> tuple[str, str] | None:
    """Names of the output head and of the embedding that it can be tied to.

    None where none of the checkpoints stores a head: then there is nothing to decide.
    """
    names = set().union(*checkpoints)
    for head, ending in _HEADS:
        if head in names:
            for name in sorted(names):
                if name == ending or name.endswith("." + ending):
                    return head, name
    return None


def is_tied(head: str, tensors: Mapping[str, View], config: Mapping[str, Any]) -> bool:
    """Whether a checkpoint's output head is its input embedding.

    It is where config.json says so, and where it says nothing and stores no head (Gemma). A head
    that is stored nevertheless repeats the embedding.
    """
    said = config.get("tie_word_embeddings")
    if said is None and isinstance(config.get("text_config"), Mapping):
        said = config["text_config"].get("tie_word_embeddings")
    return bool(said) if said is not None else head not in tensors
