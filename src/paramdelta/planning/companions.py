"""Who gives which of the small files beside the weights, and what is changed in them.

The rule: whatever describes the weights' shape and positions comes from the new base; whatever
makes a model converse (chat template, special-token roles, end-of-sequence ids, generation
settings) comes from post. Here it is decided and can be printed; `output.companions` writes it.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

from paramdelta.dtypes import torch_name
from paramdelta.errors import ParamDeltaError, UsageError
from paramdelta.formats.checkpoint import Checkpoint
from paramdelta.formats.components import PIPELINE, SENTENCES, Component
from paramdelta.planning.code import GENERATE, code_files, references
from paramdelta.planning.facts import (
    CONFIG,
    FAST,
    GENERATION,
    JINJA,
    PROCESSOR,
    PROCESSOR_TEMPLATE,
    ROLE_IDS,
    SPECIAL,
    TEMPLATES,
    TOKENIZER,
    changed,
    chat_templates,
    parts,
    role_tokens,
    same_ids,
    statements,
    token_text,
    value,
)
from paramdelta.planning.findings import Findings, Severity
from paramdelta.planning.predictors import stated_layers
from paramdelta.planning.settlement import Settlement
from paramdelta.planning.sidefiles import SideFiles, side_files
from paramdelta.planning.tokenaxes import size_places
from paramdelta.planning.tokenizer import (
    ADDED,
    is_tokenizer_file,
    is_vocabulary_file,
    read_vocabulary,
    vocabulary_names,
)
from paramdelta.planning.tokenizerjson import differing_rules
from paramdelta.planning.vocabtable import Table
from paramdelta.planning.vocabulary import MOST
from paramdelta.storage.blob import Blob
from paramdelta.storage.filekinds import is_license, is_weights
from paramdelta.storage.files import Files

# Settings of a tokenizer that belong to how a model was trained to be used.
_USE = ("truncation_side", "add_bos_token", "add_eos_token")
# What tokenizer_config.json says of the vocabulary that it lies beside.
_OF_ITS_OWN = (
    "added_tokens_decoder",
    "additional_special_tokens",
    "extra_special_tokens",
    "auto_map",
    "tokenizer_class",
)
# Keys of generation_config.json whose values are ids, however nested.
_IDS = re.compile(
    r".*_tokens?_ids?|(begin_)?suppress_tokens|bad_words_ids|force_words_ids|(lang|task)_to_id"
)

Edits = dict[tuple[str, ...], Any]


@dataclass(frozen=True)
class Companion:
    """A small file of the output.

    ``name``: its path in the output, with slashes. ``source``: the file that is copied.
    ``giver``: "new base" or "post". ``changes``: keys of the JSON object that are set (to None:
    removed). ``why``: for the plan and the card.
    """

    name: str
    source: Blob
    giver: str
    why: str
    changes: tuple[tuple[str, Any], ...] = ()


@dataclass(frozen=True)
class Facts:
    """What the small files must say of the output's weights.

    ``dtype``: the one floating-point dtype (safetensors name), None if there are several. ``tied``:
    whether the output head is the input embedding; None to leave config.json as it is. ``rows``:
    of embeddings and heads that have grown, by how many rows they had. ``quantized``: the
    quantization_config of an output that is quantized. ``head``: keys of config.json that describe
    a head that is taken from post; None for those that are removed. ``predicts``: whether it has
    layers that predict further tokens.
    """

    dtype: str | None
    tied: bool | None
    rows: Mapping[int, int]
    quantized: Mapping[str, Any] | None = None
    head: Mapping[str, Any] = field(default_factory=dict)
    predicts: bool = True


@dataclass(frozen=True)
class Choice:
    """``companions``: every small file of the output. ``left``: why other files stay behind."""

    companions: tuple[Companion, ...]
    left: Mapping[Blob, str]


def choose(
    new: Checkpoint,
    post: Checkpoint,
    base: Checkpoint | None,
    settlement: Settlement,
    facts: Facts,
    components: Sequence[Component],
    dtypes: Mapping[str, str | None],
    findings: Findings,
) -> Choice:
    """Decide every companion of the output.

    ``components``: of the output. ``dtypes``: by the prefix of each, the one floating-point dtype
    of its weights, None if there are several.

    Raises:
        UsageError: a graft that no file of the new base's tokenizer can hold.
        CheckpointError, StorageError: a file cannot be read.
    """
    folder = next((component.folder for component in components if component.is_main), "")
    ours, theirs = _beside(new), _beside(post)
    left = {**ours.left, **theirs.left}
    main = _main(ours.may, theirs.may, new, post, settlement, facts, findings)
    _report_tokenizer(main, new, base, findings)
    if settlement.new is not None and settlement.post is not None:
        _report_splitting(main, new, post, findings)
    chosen = [replace(each, name=folder + each.name) for each in main]
    chosen += _around(new, post, left)
    for inner, giver in _inner_folders(new, post, base, components, findings).items():
        owner = post if giver == "post" else new
        found = side_files(owner.folder.sub(inner), owner, _never)
        left |= found.left
        chosen += _inside(inner, found.may, owner, giver, dtypes)
    unique = {each.name: each for each in reversed(chosen)}
    return Choice(tuple(sorted(unique.values(), key=_by_name)), left)


def terms_of_use(sources: Sequence[Checkpoint], chosen: Sequence[Companion]) -> list[Companion]:
    """Licenses and terms of use of all sources, beside those that are ``chosen``.

    They go to a folder for each source. A text that the output has already is not repeated.
    """
    held = {each.source: each.name for each in chosen if is_license(each.name)}
    found: list[Companion] = []
    texts: set[bytes] = set()
    for source in sorted(sources, key=lambda source: not held.keys() & {*source.folder.values()}):
        for name in filter(is_license, source.folder):
            try:
                text = source.folder.bytes(name, MOST)
            except ParamDeltaError:  # the card says that it cannot be read
                continue
            blob = source.folder[name]
            if blob not in held and text not in texts:
                folder = f"licenses/{source.role.replace(' ', '-')}"
                why = f"terms of use of {source.role}"
                found.append(Companion(f"{folder}/{name}", blob, source.role, why))
            texts.add(text)
    return found


def _never(name: str) -> bool:
    return False


def _starts(folders: tuple[str, ...], name: str) -> bool:
    return name.startswith(folders)


def _beside(checkpoint: Checkpoint) -> SideFiles:
    """The files beside the main model, without those of other modules."""
    makeup = checkpoint.makeup
    within = makeup.main or ""
    return side_files(checkpoint.files, checkpoint, lambda n: makeup.folder_of(within + n) != "")


def _main(
    ours: Mapping[str, Blob],
    theirs: Mapping[str, Blob],
    new: Checkpoint,
    post: Checkpoint,
    settlement: Settlement,
    facts: Facts,
    findings: Findings,
) -> list[Companion]:
    """The files beside the main model's weights, under their names there."""
    words = vocabulary_names(new.files) | vocabulary_names(post.files)
    chosen: list[Companion] = []
    for name in sorted(ours.keys() | theirs.keys()):
        if name == CONFIG:
            if name in ours:
                chosen.append(_config(ours[name], new, post, settlement, facts))
        elif name == GENERATION:
            chosen.append(_generation(ours.get(name), theirs.get(name), new, post, settlement))
        elif _is_template(name) or is_tokenizer_file(name) or name in words:
            continue
        elif name.startswith(GENERATE):
            chosen += _generate(name, ours, theirs)
        elif name.endswith(".py"):
            if name in ours:
                chosen.append(
                    Companion(name, ours[name], "new base", "model code: copied, never run")
                )
        elif name == PIPELINE or is_license(name):
            what = "the components of the pipeline" if name == PIPELINE else "terms of use"
            giver, files = ("new base", ours) if name in ours else ("post", theirs)
            chosen.append(Companion(name, files[name], giver, what))
        else:
            giver, files = ("post", theirs) if name in theirs else ("new base", ours)
            what = "how the model is used"
            if is_weights(name):
                what = "weights that code of its own loads; copied, not mixed"
                _report_side_weights(name, ours, theirs, new, post, findings)
            chosen.append(Companion(name, files[name], giver, what))
    chosen += _tokenizer(ours, theirs, new, post, settlement)
    chosen = _templates(chosen, ours, theirs, new, post)
    code = _code(chosen, new, post, findings)
    replaced = {each.name for each in code}
    return [each for each in chosen if each.name not in replaced] + code


def _generate(name: str, ours: Mapping[str, Blob], theirs: Mapping[str, Blob]) -> list[Companion]:
    """One file of code for generation: all of them from post if it has any."""
    is_posts = any(each.startswith(GENERATE) for each in theirs)
    giver, files = ("post", theirs) if is_posts else ("new base", ours)
    if name not in files:
        return []
    return [Companion(name, files[name], giver, "how it generates: copied, never run")]


def _code(
    chosen: Sequence[Companion], new: Checkpoint, post: Checkpoint, findings: Findings
) -> list[Companion]:
    """The code that files of post name; reports code that is named and not there."""
    found: dict[str, Companion] = {}
    for giver, owner in (("new base", new), ("post", post)):
        given = [c for c in chosen if c.giver == giver and c.name.endswith("config.json")]
        for each in given:
            if not owner.files.text(each.name).lstrip("\ufeff \t\r\n").startswith("{"):
                continue  # data_config.json of sentence-transformers is a list, which names no code
            content = {**owner.read_json(each.name), **dict(each.changes)}
            names, missing = code_files(owner.files, references(content))
            for name in missing:
                findings.add(
                    Severity.WARNING,
                    "code-missing",
                    f"{each.name} names {name}, which is not there; the output cannot be loaded "
                    "with it either",
                    owner,
                    remedy="download the file beside the others",
                )
            for name in names if giver == "post" else ():
                why = f"code that {each.name} needs: copied, never run"
                found.setdefault(name, Companion(name, post.files[name], "post", why))
    kept = _model_code(new)
    for name in sorted(found.keys() & kept):
        if not _is_same(new.files, post.files, name):
            findings.add(
                Severity.WARNING,
                "code-differs",
                f"the model's code needs {name} and so do files of post, whose {name} differs; "
                "that of the new base is taken",
                post,
                remedy="compare the two files",
            )
        del found[name]
    return list(found.values())


def _model_code(new: Checkpoint) -> set[str]:
    """The code that the new base's config.json names."""
    return set(code_files(new.files, references(new.config))[0])


def _is_same(ours: Files, theirs: Files, name: str) -> bool:
    return ours[name].size == theirs[name].size and ours.bytes(name, MOST) == theirs.bytes(
        name, MOST
    )


def _report_side_weights(
    name: str,
    ours: Mapping[str, Blob],
    theirs: Mapping[str, Blob],
    new: Checkpoint,
    post: Checkpoint,
    findings: Findings,
) -> None:
    """Warn of weights that are copied from post although the new base has others."""
    if name in ours and name in theirs and not _is_same(new.files, post.files, name):
        findings.add(
            Severity.WARNING,
            "side-weights",
            f"{name} lies beside the weights and differs between post and the new base; it is "
            "copied from post, not mixed",
            post,
            remedy="put its tensors into the weight files to have them mixed",
        )


def _report_tokenizer(
    main: Sequence[Companion], new: Checkpoint, base: Checkpoint | None, findings: Findings
) -> None:
    """Warn of a template, or of a base with a tokenizer, where the output gets none."""
    if new.makeup.main is None or any(is_vocabulary_file(each.name) for each in main):
        return
    has_template = any(_is_template(each.name) or each.name == TOKENIZER for each in main)
    if vocabulary_names(new.files):
        return
    if has_template or (base is not None and any(map(is_vocabulary_file, base.files))):
        findings.add(
            Severity.WARNING,
            "tokenizer-missing",
            "neither post nor the new base has the vocabulary of a tokenizer, so the output has "
            "none",
            new,
            remedy="put the tokenizer's files into the folder of the new base",
        )


def _report_splitting(
    main: Sequence[Companion], new: Checkpoint, post: Checkpoint, findings: Findings
) -> None:
    """Note where tokenizer.json of post splits text into tokens by other rules."""
    chosen = next((each for each in main if each.name == FAST), None)
    if chosen is None or FAST not in new.files or FAST not in post.files:
        return
    if _is_same(new.files, post.files, FAST):
        return
    keys = differing_rules(new.read_json(FAST), post.read_json(FAST))
    if keys:
        findings.add(
            Severity.NOTE,
            "splitting-differs",
            "tokenizer.json of post and the new base split text into tokens by other rules "
            f"({', '.join(keys)}); those of {chosen.giver} are used",
            post,
            remedy="compare the two files; where only one was saved by a newer library, both can "
            "mean the same",
        )


def _around(new: Checkpoint, post: Checkpoint, left: dict[Blob, str]) -> list[Companion]:
    """The files around a main model that is in a folder of its own: post's, or the new base's."""
    chosen: dict[str, Companion] = {}
    for giver, owner in (("new base", new), ("post", post)):
        makeup = owner.makeup
        if not makeup.main:
            continue
        inner = (makeup.main, *makeup.inner)
        found = side_files(owner.folder, owner, partial(_starts, inner))
        left |= found.left
        for name, blob in found.may.items():
            chosen[name] = Companion(name, blob, giver, "how the model is used")
    return list(chosen.values())


def _inner_folders(
    new: Checkpoint,
    post: Checkpoint,
    base: Checkpoint | None,
    components: Sequence[Component],
    findings: Findings,
) -> dict[str, str]:
    """Who gives the files of each module or component beside the main model, by its folder.

    A model's configuration describes its weights, so it is the new base's; that of a module which
    only post has is post's. A folder without weights (a pooling, a scheduler, a tokenizer) says how
    the model is used: it is post's, unless post-training left it as it was in base.
    """
    listing = post if post.makeup.framework == SENTENCES else new
    weights = {component.folder for component in components if not component.is_main}
    found: dict[str, str] = {}
    for inner in listing.makeup.inner:
        ours, theirs = new.folder.sub(inner), post.folder.sub(inner)
        if ours and theirs:
            _compare_vocabulary(inner, new, post, base, findings)
        if inner in weights:
            found[inner] = "new base" if ours else "post"
            continue
        theirs_kept = base is not None and _same_folder(theirs, base.folder.sub(inner))
        if not theirs or (ours and (theirs_kept or _same_folder(ours, theirs))):
            found[inner] = "new base"
        else:
            found[inner] = "post"
    return found


def _same_folder(ours: Files, theirs: Files) -> bool:
    """Whether two folders hold the same."""
    return ours.keys() == theirs.keys() and all(
        ours[n].size <= MOST and _is_same(ours, theirs, n) for n in ours
    )


def _compare_vocabulary(
    inner: str, new: Checkpoint, post: Checkpoint, base: Checkpoint | None, findings: Findings
) -> None:
    """Refuse a pipeline's tokenizers with other tokens: its embeddings are mixed row by row."""
    known: dict[bytes, Table] = {}
    ours = read_vocabulary(new.folder.sub(inner), {}, known)
    if ours is None:
        return
    for other in (post, base):
        theirs = read_vocabulary(other.folder.sub(inner), {}, known) if other else None
        if other is not None and theirs is not None and theirs != ours:
            findings.add(
                Severity.REFUSED,
                "component-vocabulary",
                f"{inner} has another vocabulary than that of the new base, and rows of tokens are "
                "mixed by number in a folder of several models",
                other,
                remedy="mix the model of this vocabulary by itself: name its folder",
                allowed="rows are mixed by number",
            )


def _inside(
    inner: str,
    files: Mapping[str, Blob],
    owner: Checkpoint,
    giver: str,
    dtypes: Mapping[str, str | None],
) -> list[Companion]:
    """The files of one module or component."""
    has_weights = inner in dtypes
    what = "describes the weights" if has_weights else "how the model is used"
    chosen = []
    for name, blob in files.items():
        each = Companion(inner + name, blob, giver, what)
        if name == CONFIG and has_weights:
            within = owner.folder.sub(inner)
            edits: Edits = {("_name_or_path",): None}
            dtype = dtypes[inner]
            if dtype is not None:
                stated = [s.keys for s in statements("dtype", within) if s.file == CONFIG]
                edits |= dict.fromkeys(stated, torch_name(dtype))
            changes = changed(within.json(CONFIG), edits)
            each = replace(each, changes=tuple(changes.items()))
        chosen.append(each)
    return chosen


def _by_name(companion: Companion) -> str:
    return companion.name


# -- config.json and generation_config.json --------------------------------------------------------


def _config(
    source: Blob, new: Checkpoint, post: Checkpoint, settlement: Settlement, facts: Facts
) -> Companion:
    """The new base's config.json; every place in it that states one fact states it alike."""
    edits: Edits = {}
    for role in ROLE_IDS:
        ids = _role_ids(role, post, settlement)
        if ids is not None:
            edits |= dict.fromkeys(_places(role, new), ids)
    roles = bool(changed(new.config, edits))
    if facts.dtype is not None:
        places = _places("dtype", new)
        edits |= dict.fromkeys(places, torch_name(facts.dtype))
    if facts.tied is not None:
        sections = [keys for keys, _ in parts(new.config, "text")]
        edits |= {(*keys, "tie_word_embeddings"): facts.tied for keys in sections}
    if facts.rows:
        size = settlement.new.size if settlement.new is not None else None
        most = max(facts.rows.values())
        for keys, rows in size_places(new.config, size).items():
            edits[keys] = facts.rows.get(rows, max(rows, most))
    stated = [s.keys for s in statements("quantization", new.files) if s.file == CONFIG]
    edits |= dict.fromkeys(stated, None)
    if facts.quantized is not None:
        edits[("quantization_config",)] = facts.quantized
    if not facts.predicts:
        edits |= dict.fromkeys(stated_layers(new.config), 0)
    edits[("_name_or_path",)] = None
    edits |= {(key,): stated for key, stated in facts.head.items()}
    why = "architecture, positions and context length"
    if roles:
        why += "; special-token ids from post"
    if facts.head:
        why += "; architecture and labels of the head from post"
    if facts.quantized is not None:
        why += "; FP8 with fresh scales of its blocks"
    return Companion(CONFIG, source, "new base", why, tuple(changed(new.config, edits).items()))


def _places(fact: str, checkpoint: Checkpoint) -> list[tuple[str, ...]]:
    """The keys under which config.json states a fact; its usual key if it does not.

    A model of diffusers takes no key that its class does not know.
    """
    found = [s.keys for s in statements(fact, checkpoint.files) if s.file == CONFIG]
    return found or ([] if "_class_name" in checkpoint.config else [(fact,)])


def _role_ids(role: str, post: Checkpoint, settlement: Settlement) -> Any:
    """What config.json says of a role: what post stops, starts or pads with, as the output's ids.

    As post's config.json says it, unless its generation_config.json contradicts it, which counts
    then; in the form of the former, since models that compare ids with this one expect a number.
    """
    said = value(role, post.files)
    own = next((s.value for s in statements(role, post.files) if s.file == CONFIG), said)
    if not same_ids(own, said):
        own = said[0] if isinstance(own, int) and isinstance(said, list) and said else said
    return _output_ids(own, settlement)


def _output_ids(value: Any, settlement: Settlement) -> Any:
    """Ids of post as the output's, without those of tokens that it lacks; None if none is left."""
    if isinstance(value, Mapping):
        pairs = ((key, _output_ids(item, settlement)) for key, item in value.items())
        return {key: ids for key, ids in pairs if ids is not None} or None
    if isinstance(value, list):
        found = [(item, _output_ids(item, settlement)) for item in value]
        return [ids for item, ids in found if ids is not None and _is_whole(item, ids)] or None
    if isinstance(value, int) and not isinstance(value, bool):
        return settlement.output_id(value)
    return None


def _is_whole(given: Any, ids: Any) -> bool:
    """Whether a sequence within a list has lost none of its ids."""
    return not isinstance(given, list) or len(given) == len(ids)


def _generation(
    ours: Blob | None,
    theirs: Blob | None,
    new: Checkpoint,
    post: Checkpoint,
    settlement: Settlement,
) -> Companion:
    """Post's generation settings, its token ids as those of the output.

    Where it has none, the new base's, which must stop where post stops: transformers looks into
    this file only, if it is there.
    """
    if theirs is None:
        assert ours is not None
        settings: Mapping[str, Any] = new.read_json(GENERATION)
        said = {role: _role_ids(role, post, settlement) for role in ROLE_IDS}
        edits: Edits = {(role,): ids for role, ids in said.items() if ids is not None}
        changes = changed(settings, edits)
        why = "post has none" + ("; special-token ids from post" if changes else "")
        return Companion(GENERATION, ours, "new base", why, tuple(changes.items()))
    settings = post.read_json(GENERATION)
    edits = {
        (key,): _output_ids(value, settlement)
        for key, value in settings.items()
        if _IDS.fullmatch(key) and value is not None
    }
    for role in ROLE_IDS:  # rather the new base's end of sequence than none
        if edits.get((role,), 0) is None and new.config.get(role) is not None:
            edits[(role,)] = new.config[role]
    changes = changed(settings, edits)
    why = "how the model is used" + ("; ids by token" if changes else "")
    return Companion(GENERATION, theirs, "post", why, tuple(changes.items()))


# -- tokenizer -------------------------------------------------------------------------------------


def _tokenizer(
    ours: Mapping[str, Blob],
    theirs: Mapping[str, Blob],
    new: Checkpoint,
    post: Checkpoint,
    settlement: Settlement,
) -> list[Companion]:
    """The tokenizer's files, all from one giver so that they agree with each other.

    Post's where it is the new base's own vocabulary, for its roles and template are wanted.
    Otherwise the new base's, with post's roles and settings, and grafted tokens, put in.
    """
    our_files, their_files = (
        {n: blob for n, blob in files.items() if is_tokenizer_file(n) or n in named}
        for files, named in (
            (ours, vocabulary_names(new.files)),
            (theirs, vocabulary_names(post.files)),
        )
    )
    if _is_posts(our_files, their_files, new, post, settlement):
        return [_of_post(name, blob, new, post) for name, blob in their_files.items()]
    chosen = []
    holders = 0
    for name, blob in our_files.items():
        each = Companion(name, blob, "new base", "vocabulary of the new base")
        if settlement.given:
            given: Edits = {(key,): v for key, v in _given(name, new, post, settlement).items()}
            holders += bool(given)
            each = _edited(each, given, new, "tokens of post")
        edits = _edits(name, new, post, settlement)
        chosen.append(_edited(each, edits, new, "roles and use of post"))
    if TOKENIZER in their_files and TOKENIZER not in our_files:
        known = settlement.ids
        unknown = {role for role, t in role_tokens(post.files).items() if t not in known}
        dropped: Edits = {(key,): None for key in (*unknown, *_OF_ITS_OWN)}
        each = Companion(TOKENIZER, their_files[TOKENIZER], "post", "roles and use of post")
        chosen.append(_edited(each, dropped, post, "ids of the new base"))
    if settlement.given and our_files and not holders:
        raise UsageError(
            "no file of the new base's tokenizer can hold a token of post",
            code="token-without-file",
            where=new.location.address,
            remedy="save the tokenizer with transformers, which writes a tokenizer.json",
        )
    return chosen


def _of_post(name: str, blob: Blob, new: Checkpoint, post: Checkpoint) -> Companion:
    """A tokenizer file of post, with its roles alike and the new base's context length."""
    found = Companion(name, blob, "post", "same vocabulary; roles of post")
    if name not in (TOKENIZER, SPECIAL):
        return found
    stated = {role for role, said in post.read_json(name).items() if said is not None}
    roles = {role: token for role, token in role_tokens(post.files).items() if role in stated}
    found = _edited(found, _role_edits(post.read_json(name), roles), post, "one role, one token")
    length = value("model_max_length", new.files)
    if name == SPECIAL or length is None:
        return found
    return _edited(found, {("model_max_length",): length}, post, "context length of the new base")


def _role_edits(content: Mapping[str, Any], roles: Mapping[str, str]) -> Edits:
    """The roles of which a file names another token."""
    return {
        (role,): token for role, token in roles.items() if token_text(content.get(role)) != token
    }


def _edited(companion: Companion, edits: Edits, owner: Checkpoint, why: str) -> Companion:
    """A companion with more changes. ``owner``: the checkpoint that it comes from."""
    if not edits:
        return companion
    content = {**owner.read_json(companion.name), **dict(companion.changes)}
    changes = changed(content, edits)
    if not changes:
        return companion
    return Companion(
        companion.name,
        companion.source,
        companion.giver,
        f"{companion.why}; {why}",
        tuple({**dict(companion.changes), **changes}.items()),
    )


def _is_posts(
    ours: Mapping[str, Blob],
    theirs: Mapping[str, Blob],
    new: Checkpoint,
    post: Checkpoint,
    settlement: Settlement,
) -> bool:
    """Whether the output has post's tokenizer; an adapter may have a template and no vocabulary."""
    our_words, their_words = (
        {n: blob for n, blob in files.items() if n not in (TOKENIZER, SPECIAL, ADDED)}
        for files in (ours, theirs)
    )
    if not theirs or (our_words and not their_words):
        return False
    if not ours:
        return True
    if settlement.mode == "new-base" or not settlement.same:
        return False
    if settlement.new is not None and settlement.post is not None:
        return not settlement.post.is_cut  # it has tokens for which there is no row
    # The vocabularies were not compared. Equal files or not fewer rows: post's tokenizer knows all.
    if our_words.keys() == their_words.keys() and all(
        blob.size == their_words[name].size
        and new.files.bytes(name, MOST) == post.files.bytes(name, MOST)
        for name, blob in our_words.items()
    ):
        return True
    rows, others = (value("vocab_size", each.files) for each in (new, post))
    return not (isinstance(rows, int) and isinstance(others, int) and rows > others)


def _edits(name: str, new: Checkpoint, post: Checkpoint, settlement: Settlement) -> Edits:
    """What post's roles and use change in one of the tokenizer files of the new base.

    Where the vocabularies were not read, no tokenizer.json is read here either.
    """
    was_read = settlement.new is not None and settlement.post is not None
    if name not in (TOKENIZER, SPECIAL) and not (name == FAST and FAST in post.files and was_read):
        return {}
    known = settlement.ids if was_read else _named(new)
    content = new.read_json(name)
    roles = {role: token for role, token in role_tokens(post.files).items() if token in known}
    said = post.read_json(TOKENIZER)
    stated = value("padding_side", post.files) if was_read else said.get("padding_side")
    side = str(stated).lower() if str(stated).lower() in ("left", "right") else None
    edits = _role_edits(content, roles) if name in (TOKENIZER, SPECIAL) else {}
    if name == TOKENIZER:
        edits |= {(key,): said[key] for key in _USE if said.get(key) is not None}
        if side is not None:
            edits[("padding_side",)] = side
    if name == FAST:
        if side is not None and isinstance(content.get("padding"), Mapping):
            pad = roles.get("pad_token")
            edits[("padding", "direction")] = side.capitalize()
            if pad is not None:
                edits[("padding", "pad_token")] = pad
                edits[("padding", "pad_id")] = known[pad]
        processor = _processor(post.read_json(FAST).get("post_processor"), known)
        if processor is not None:
            edits[("post_processor",)] = processor
    return edits


def _named(checkpoint: Checkpoint) -> dict[str, int]:
    """The special tokens that tokenizer_config.json names; where vocabularies were not read."""
    decoder = checkpoint.read_json(TOKENIZER).get("added_tokens_decoder")
    entries = decoder.items() if isinstance(decoder, Mapping) else ()
    named = ((token_text(token), str(key)) for key, token in entries)
    return {text: int(key) for text, key in named if text is not None and key.isdecimal()}


def _processor(said: Any, ids: Mapping[str, int]) -> Any:
    """A post-processor of tokenizer.json with the output's ids; None if the output lacks a token,
    or where its form is not known.
    """
    if not isinstance(said, Mapping):
        return None
    kind = said.get("type")
    if kind == "ByteLevel":
        return dict(said)
    if kind == "Sequence":
        inner = [_processor(each, ids) for each in said.get("processors") or []]
        return None if None in inner else {**said, "processors": inner}
    if kind in ("BertProcessing", "RobertaProcessing"):
        pairs = {key: said.get(key) for key in ("sep", "cls")}
        tokens = {k: str(p[0]) if isinstance(p, list) and p else "" for k, p in pairs.items()}
        if any(token not in ids for token in tokens.values()):
            return None
        return {**said, **{key: [token, ids[token]] for key, token in tokens.items()}}
    if kind == "TemplateProcessing" and isinstance(said.get("special_tokens"), Mapping):
        special = {}
        for key, entry in said["special_tokens"].items():
            texts = entry.get("tokens") or []
            if any(text not in ids for text in texts):
                return None
            special[key] = {**entry, "ids": [ids[text] for text in texts]}
        return {**said, "special_tokens": special}
    return None


# -- chat templates --------------------------------------------------------------------------------


def _is_template(name: str) -> bool:
    return name in (JINJA, PROCESSOR_TEMPLATE) or name.startswith(f"{TEMPLATES}/")


def _templates(
    chosen: list[Companion],
    ours: Mapping[str, Blob],
    theirs: Mapping[str, Blob],
    new: Checkpoint,
    post: Checkpoint,
) -> list[Companion]:
    """All chat templates from one giver, in every place: post's, or else the new base's.

    ``chosen``: the other companions. Some loaders look at the tokenizer's config first, some at a
    file of its own.
    """
    is_posts = bool(statements("chat_template", post.files))
    giver, files, blobs = ("post", post, theirs) if is_posts else ("new base", new, ours)
    found = [
        Companion(name, blob, giver, f"chat template of {giver}")
        for name, blob in blobs.items()
        if _is_template(name)
    ]
    templates = chat_templates(files.files)
    if not templates:
        return chosen + found
    inline: Any = [{"name": name, "template": text} for name, text in templates.items()]
    if templates.keys() == {"default"}:
        inline = templates["default"]
    edits: Edits = {("chat_template",): inline}
    others = []
    for each in chosen:
        owner = post if each.giver == "post" else new
        content = owner.read_json(each.name) if each.name in (TOKENIZER, PROCESSOR) else {}
        stated = content.get("chat_template") is not None
        if stated or (each.name == TOKENIZER and not found):
            others.append(_edited(each, edits, owner, f"chat template of {giver}"))
        else:
            others.append(each)
    return found + others


def _given(name: str, new: Checkpoint, post: Checkpoint, settlement: Settlement) -> dict[str, Any]:
    """What the tokens that post gives change in one of the tokenizer's files."""
    assert settlement.post is not None
    tokens = {out: settlement.post.tokens[p] for out, p in settlement.given.items()}
    entries = {
        out: {**_plain(token), "special": settlement.given[out] in settlement.post.special}
        for out, token in tokens.items()
    }
    if name == FAST:
        ours = new.read_json(name)
        theirs = {
            token.get("content"): token for token in post.read_json(name).get("added_tokens") or []
        }
        kept = [t for t in ours.get("added_tokens") or [] if t.get("id") not in tokens]
        added = [{**theirs.get(tokens[out], entry), "id": out} for out, entry in entries.items()]
        changes: dict[str, Any] = {"added_tokens": sorted(kept + added, key=lambda t: t["id"])}
        vocab = ours["model"].get("vocab")
        if isinstance(vocab, dict):
            renamed = {tokens.get(i, token): i for token, i in vocab.items()}
            assert settlement.new is not None
            if len(settlement.new.tokens) < settlement.new.size:
                # The library numbers what only added_tokens has by counting: a gap would shift it.
                renamed |= {token: out for out, token in tokens.items()}
            if renamed.keys() != vocab.keys():
                changes["model"] = {**ours["model"], "vocab": renamed}
        return changes
    if name == TOKENIZER:
        decoder = new.read_json(name).get("added_tokens_decoder")
        if not decoder and FAST in new.files:
            return {}
        if not decoder:  # the loader reads added_tokens.json only where there is no decoder
            decoder = {
                str(i): {**_plain(token), "special": True}
                for token, i in new.read_json(ADDED).items()
            }
        theirs = post.read_json(name).get("added_tokens_decoder") or {}
        added_here = {
            str(out): theirs.get(str(settlement.given[out]), entry)
            for out, entry in entries.items()
        }
        return {"added_tokens_decoder": {**decoder, **added_here}}
    if name == ADDED:
        return {token: out for out, token in tokens.items()}
    return {}


def _plain(token: str) -> dict[str, Any]:
    """An added token as tokenizer_config.json writes it, without its speciality."""
    return {
        "content": token,
        "single_word": False,
        "lstrip": False,
        "rstrip": False,
        "normalized": False,
    }
