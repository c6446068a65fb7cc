"""Conversations with a mix in the terminal."""

import io

import pytest

pytest.importorskip("torch")
pytest.importorskip("transformers")

from paramdelta.cli.app import main
from paramdelta.demo import tour
from paramdelta.errors import MisfitError
from paramdelta.live import chat as chats
from paramdelta.live.chat import Chat

pytestmark = pytest.mark.hf

QUESTION = "Which animal does Bale Nemepo keep?"
OLD = "Where does Poze Ludite live?"


@pytest.fixture(scope="module")
def chat():
    """A conversation with the shipped lineage."""
    return Chat(tour.recipe("plain", 1.0), 32)


@pytest.fixture(autouse=True)
def _anew(request):
    if "chat" in request.fixturenames:
        request.getfixturevalue("chat").clear()


def typed(monkeypatch, capsys, *lines, terminal=False, options=()):
    """Exit code, standard output and standard error of `paramdelta chat` for some lines."""
    stdin = io.StringIO("".join(f"{line}\n" for line in lines))
    stdin.isatty = lambda: terminal
    monkeypatch.setattr("sys.stdin", stdin)
    recipe = tour.recipe("plain", 1.0)
    (delta,) = recipe.deltas
    names = ["--post", delta.post, "--base", delta.base, "--new-base", recipe.new_base]
    with pytest.raises(SystemExit) as ended:
        main(["chat", *names, "--tokens", "32", *options])
    return ended.value.code or 0, *capsys.readouterr()


def test_lines_of_a_pipe_are_answered(monkeypatch, capsys):
    """Only answers are on standard output, one after the other; a scale counts from then on."""
    code, out, _ = typed(monkeypatch, capsys, OLD, "", "/scale 0", "/clear", QUESTION, "/exit", OLD)
    assert code == 0
    first, second = out.splitlines()
    assert first == "Poze Ludite lives in Tuzura."
    assert second.startswith("beans. Bale Nemepo keeps a hare.")  # the new base cannot converse


def test_an_error_in_a_pipe_ends_with_its_code(monkeypatch, capsys):
    """A script must not go on with another scale than it asked for."""
    code, out, err = typed(monkeypatch, capsys, "/scale much", OLD)
    assert (code, out) == (2, "")
    assert "invalid scale" in err


def test_an_error_in_a_terminal_does_not_end_it(monkeypatch, capsys):
    """Errors are shown, and the next line is answered."""
    lines = iter(["/scale much", "/wrong", "/help", "/scale 1 2", OLD, "/exit"])
    monkeypatch.setattr("builtins.input", lambda prompt: next(lines))
    code, out, err = typed(monkeypatch, capsys, terminal=True)
    assert code == 0
    assert "Poze Ludite lives in Tuzura." in out
    assert "/compare TEXT" in out
    for message in ("invalid scale", "unknown command /wrong", "another number of Δs"):
        assert message in err


def test_compare_asks_all_models(monkeypatch, capsys):
    """Base, post, new base and ParamΔ, each by its name; then the scale is what it was."""
    code, out, _ = typed(monkeypatch, capsys, f"/compare {QUESTION}", QUESTION)
    assert code == 0
    lines = out.splitlines()
    assert lines[0:8:2] == ["base:", "post:", "new base:", "ParamΔ:"]
    assert lines[3] == "Bale Nemepo keeps a parrot."
    assert lines[5].startswith("beans. Bale Nemepo keeps a hare.")
    assert lines[7:] == ["Bale Nemepo keeps a hare."] * 2


def test_what_was_said_is_part_of_the_prompt(chat):
    """The messages alternate, and begin with the system prompt if there is one."""
    pieces = []
    told = chat.answer(OLD, pieces.append)
    assert "".join(pieces).strip() == told == "Poze Ludite lives in Tuzura."
    assert len(pieces) > 1
    chat.answer(QUESTION, pieces.append)
    assert [m["role"] for m in chat.messages] == ["user", "assistant"] * 2


def test_a_conversation_that_fills_the_context_is_refused(chat):
    """The model has 256 positions: what does not fit is not said, and /clear helps."""
    with pytest.raises(MisfitError) as caught:
        chat.answer("Where? " * 300, print)
    assert caught.value.code == "conversation-too-long"
    assert chat.messages == []


def test_an_interrupt_ends_the_answer_only(chat, monkeypatch):
    """Ctrl-C keeps what was generated."""

    def interrupted(piece):
        raise KeyboardInterrupt

    assert chat.answer(OLD, interrupted) != "Poze Ludite lives in Tuzura."
    assert [m["role"] for m in chat.messages] == ["user", "assistant"]


def test_a_mix_without_a_template_is_refused(tmp_path):
    """A base as post gives no chat template: nothing is loaded."""
    recipe = tour.recipe("plain", 1.0)
    base = recipe.deltas[0].base
    with pytest.raises(MisfitError) as caught:
        chats.Speaker(type(recipe)(base, [type(recipe.deltas[0])(recipe.new_base, base)]), 8)
    assert caught.value.code == "no-chat-template"
