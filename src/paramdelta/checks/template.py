"""The chat template: which one counts, whether it renders, and whether generation ends with it.

Where transformers looks: ``chat_template`` in tokenizer_config.json, replaced by
chat_template.jinja, beside the files of additional_chat_templates/. Processors look in
chat_template.json too; TGI and older versions only in tokenizer_config.json.
"""

import re
from collections.abc import Mapping
from typing import Any

from paramdelta.checks.part import Part
from paramdelta.checks.process import DONE, MISSING, run_child
from paramdelta.checks.vocabulary import Tokens, role_tokens, stop_ids
from paramdelta.planning.findings import Findings, Severity

SECONDS = 20  # for rendering all templates of a part
MOST = 1 << 20  # characters of a template
CONVERSATION = ("Name a red fruit.", "An apple is red.", "And a yellow one?", "A lemon is yellow.")
_TOKEN = re.compile(r"<[|｜][^|｜<>\s]{1,60}[|｜]>")


def check_template(part: Part, tokens: Tokens, findings: Findings) -> str | None:
    """Compare and render the templates of one part; why nothing was rendered, if so."""
    stated = _templates(part, findings)
    _compare(part, stated, findings)
    if not stated:
        return None
    place, template = stated[0]
    roles = role_tokens(part)
    answer = run_child(
        "render", {"template": template, "roles": roles, "conversation": CONVERSATION}, SECONDS
    )
    if answer["outcome"] == MISSING:
        return f"the chat template was not rendered: {answer['why']}"
    if answer["outcome"] != DONE:
        findings.add(
            Severity.REFUSED,
            "template-invalid",
            f"the chat template does not render a conversation of two turns: {answer['why']}",
            part.place(place),
            remedy="look at the template's source; apply_chat_template fails in the same way",
        )
        return None
    _check_rendered(part, place, str(answer["text"]), tokens, findings)
    return None


def _templates(part: Part, findings: Findings) -> list[tuple[str, str]]:
    """The default template of every place that has one, the one that counts first."""
    found: list[tuple[str, str]] = []
    text = part.folder.text("chat_template.jinja", findings)
    if text is not None:
        found.append(("chat_template.jinja", text))
    for name, key in (("tokenizer_config.json", None), ("chat_template.json", "chat_template"),
                      ("processor_config.json", None)):  # fmt: skip
        content = part.tokenizer_config if name == "tokenizer_config.json" else None
        if content is None:
            content = part.folder.object(name, findings) if name in part.folder else {}
        value = content.get(key or "chat_template")
        template = _default(value)
        if template is not None:
            found.append((name, template))
        elif value is not None and not isinstance(value, (str, list, Mapping)):
            findings.add(
                Severity.REFUSED,
                "template-invalid",
                "chat_template is neither a text nor a list of named texts",
                part.place(name),
                remedy="write the template as a text",
            )
    for name, text in list(found):
        if len(text) > MOST:
            found.remove((name, text))
            findings.add(
                Severity.REFUSED,
                "template-invalid",
                f"the chat template has {len(text)} characters, more than the {MOST} that are read",
                part.place(name),
                remedy="get the file again",
            )
    return found


def _default(value: Any) -> str | None:
    """The text of ``chat_template``, or of the default one of several."""
    if isinstance(value, list):
        value = {e.get("name"): e.get("template") for e in value if isinstance(e, Mapping)}
    if isinstance(value, Mapping):
        value = value.get("default")
    return value if isinstance(value, str) and value else None


def _compare(part: Part, stated: list[tuple[str, str]], findings: Findings) -> None:
    for place, template in stated[1:]:
        if template.strip() != stated[0][1].strip():
            findings.add(
                Severity.WARNING,
                "template-disagrees",
                f"the chat template in {place} is not the one in {stated[0][0]}: transformers "
                "takes the latter, some servers the former",
                part.place(place),
                remedy="keep one of them, or write the same text in both",
            )
    extra = [n for n in part.folder.sizes if n.startswith("additional_chat_templates/")]
    names = [place for place, _ in stated]
    if extra and "chat_template.jinja" not in names and stated:
        findings.add(
            Severity.WARNING,
            "template-disagrees",
            "transformers ignores the chat template in "
            f"{names[0]} because there are additional_chat_templates and no chat_template.jinja",
            part.place(extra[0]),
            remedy="put the default template in chat_template.jinja",
        )


def _check_rendered(part: Part, place: str, text: str, tokens: Tokens, findings: Findings) -> None:
    first, said, second, last = CONVERSATION
    if said not in text or last not in text or first not in text:
        findings.add(
            Severity.WARNING,
            "template-drops-content",
            "the rendered conversation lacks what a user or the assistant said",
            part.place(place),
            remedy="look at the template's source",
        )
        return
    unknown = {t for t in _TOKEN.findall(text) if tokens.whole and t not in tokens.ids}
    for token in sorted(unknown):
        findings.add(
            Severity.NOTE,
            "template-token-unknown",
            "the template writes what looks like special tokens, and the vocabulary has no such "
            "tokens: they are split into pieces",
            part.place(place),
            tensor=token,
        )
    if not part.generates:
        return
    after = text.split(said, 1)[1].split(second, 1)[0], text.rsplit(last, 1)[1]
    stops = stop_ids(part, tokens)
    ends = {
        loader: any(token in tail for token in tokens.names(ids) for tail in after)
        for loader, ids in stops.items()
    }
    if not tokens.ids or all(ends.values()):
        return
    never = not any(ends.values())
    found = sorted(stops["vLLM"])
    named = ", ".join(map(repr, tokens.names(set(found))[:4])) or "no token"
    findings.add(
        Severity.REFUSED,
        "template-never-stops",
        "the template does not end the assistant's turn with a token at which generation stops "
        + (f"({named})" if never else "in transformers (in vLLM it does)")
        + f"; it writes {_shorten(after[1])!r}",
        part.place(place),
        remedy="add the id of the token that ends a turn to eos_token_id of "
        "generation_config.json, or correct the template",
    )


def _shorten(text: str) -> str:
    return text if len(text) <= 40 else text[:39] + "…"
