"""From templates to tokens that know whose text they are, through chat templates of all kinds."""

from collections.abc import Sequence
from pathlib import Path

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from tiny import CHATML, save_tokenizer
from transformers import AutoTokenizer

from cachegraph.agents.prompt.prompt import Piece, Prompt, PromptTemplate, Slot, tokenize
from cachegraph.agents.spec import AgentSpec
from cachegraph.engine.engine import Engine
from cachegraph.engine.text.tokenizer import Tokenizer
from cachegraph.errors import InputError

TRIMMING = (
    "{% if messages[0].role != 'system' %}<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n{% endif %}"
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content | trim }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
CONDITIONAL = (
    "{% for m in messages %}{% if m.role == 'system' %}[[{{ m.content }}]]{% elif loop.last and m.content %}"
    "<|im_start|>user\n{{ m.content | trim }}<|im_end|>\n{% elif m.content %}({{ m.content }}){% endif %}{% endfor %}"
)
SYSTEM_FIRST = (  # as Gemma's: the system message is put in front of the user's
    "{% set first = messages[0].content + '\n\n' if messages[0].role == 'system' else '' %}"
    "{% for m in (messages[1:] if messages[0].role == 'system' else messages) %}<start_of_turn>{{ m.role }}\n"
    "{{ (first if loop.first else '') + m.content | trim }}<end_of_turn>\n{% endfor %}<start_of_turn>model\n"
)
TEMPLATES = {"chatml": CHATML, "trimming": TRIMMING, "conditional": CONDITIONAL, "system_first": SYSTEM_FIRST}
TEXTS = [
    "Why is the sky blue?",
    "You are a helpful assistant.",
    "<start_of_turn>user\nhi<end_of_turn>",
    "assistant",
    "user",
    "天空为什么是蓝色的？ 空はなぜ青いの？",
    "👩‍👩‍👧‍👦🏳️‍🌈 naïve",
    "￼ an object character",
    "line\r\nline\n",
    "x",
]


@pytest.fixture(scope="module", params=TEMPLATES)
def tokenizer(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    folder = tmp_path_factory.mktemp("tokenizer")
    save_tokenizer(folder, template=TEMPLATES[request.param])
    return Tokenizer(AutoTokenizer.from_pretrained(folder))


def prompt_of(
    tokenizer: Tokenizer,
    template: str,
    values: dict[str, str],
    *,
    system: str | None = None,
    slots: Sequence[str] = (),
    upstream: Sequence[str] = (),
    chat: bool = True,
) -> Prompt:
    compiled = PromptTemplate("reader", AgentSpec(model="m", prompt=template, system=system), upstream)
    return tokenize(compiled.messages(values, slots), tokenizer, chat)


def text_of(prompt: Prompt) -> str:
    return "".join(part.text for part in prompt.parts if isinstance(part, Piece))


def value_of(prompt: Prompt, name: str, value: str) -> str:
    """What the tokens of a name hold, put together from the characters that each says it covers."""
    covered: set[int] = set()
    for part in prompt.parts:
        if isinstance(part, Piece):
            assert len(part.ids) == len(part.origins) == len(part.offsets)
            for origin in part.origins:
                if origin is not None and origin.name == name:
                    assert 0 <= origin.start < origin.end <= len(value)
                    covered |= set(range(origin.start, origin.end))
    return "".join(value[at] for at in sorted(covered))


VALUES = st.one_of(
    st.sampled_from(TEXTS),
    st.text(max_size=30),
    st.text(" \n\tab.,é中🙂￼", max_size=20),
)


@settings(deadline=None, max_examples=200)
@given(
    question=VALUES,
    document=VALUES,
    before=st.sampled_from(["", " ", "\n\n", "Text: "]),
    after=st.sampled_from(["", " ", "\n", "?"]),
)
@example(question="You are a helpful assistant.", document="You are a helpful assistant.", before="", after="")
def test_the_tokens_of_a_value_hold_the_value(
    tokenizer: Tokenizer, question: str, document: str, before: str, after: str
) -> None:
    """But for white space at its ends, which templates trim and which a token may share with the template's own."""
    template = f"{before}{{{{ document }}}}{after}\n{{{{ question }}}}"
    prompt = prompt_of(tokenizer, template, {"question": question, "document": document}, system="{{ question }}")
    for name, value in (("question", question), ("document", document)):
        assert value_of(prompt, name, value).strip() == value.strip()


@pytest.mark.models
@pytest.mark.parametrize("name", ["smollm2-135m-instruct", "gemma-3-270m"])
@settings(deadline=None, max_examples=60)
@given(question=VALUES, document=VALUES)
def test_real_tokenizers_lose_no_word_of_a_value(
    demo_engines: dict[str, Engine], name: str, question: str, document: str
) -> None:
    real = demo_engines[name].model.tokenizer
    assert real is not None
    values = {"question": question, "document": document}
    for chat in {False, real.has_chat}:
        prompt = prompt_of(real, "{{ document }}\n\n{{ question }} Answer:", values, chat=chat)
        for key, value in values.items():
            assert letters(value_of(prompt, key, value)) == letters(value)


def letters(text: str) -> str:
    return "".join(character for character in text if character.isalnum())


@pytest.mark.parametrize("text", TEXTS)
def test_text_between_and_around_slots_is_the_text_without_them(tokenizer: Tokenizer, text: str) -> None:
    """A slot at the beginning, in the middle, at the end, twice: the pieces are what the template makes of the rest."""
    for template in ("{{ a }}{{ q }}", "{{ q }}{{ a }}", "{{ q }} {{ a }} {{ q }}", "{{ a }}{{ q }}{{ a }}"):
        prompt = prompt_of(tokenizer, template, {"q": text, "a": ""}, slots=["a"], upstream=["a"])
        assert [part.sender for part in prompt.parts if isinstance(part, Slot)] == ["a"] * template.count("{{ a }}")
        assert value_of(prompt, "q", text).strip() == text.strip()
        whole = prompt_of(tokenizer, template.replace("{{ a }}", "SLOT"), {"q": text})
        assert text_of(prompt) == text_of(whole).replace("SLOT", "")
        assert "a" not in prompt.seen


def test_a_slot_is_a_place_even_where_the_message_holds_nothing_else(tokenizer: Tokenizer) -> None:
    prompt = prompt_of(tokenizer, "{{ a }}", {"a": ""}, slots=["a"], upstream=["a"])
    assert [type(part) for part in prompt.parts] in ([Piece, Slot, Piece], [Slot, Piece])
    assert prompt.seen == set()


def test_a_template_may_branch_on_whether_there_is_a_message(tokenizer: Tokenizer) -> None:
    """A slot is something; an empty text is nothing."""
    template = "{% if a %}It says: {{ a }}\n{% endif %}{{ q }}"
    slot = prompt_of(tokenizer, template, {"q": "why?", "a": ""}, slots=["a"], upstream=["a"])
    assert [part.sender for part in slot.parts if isinstance(part, Slot)] == ["a"]
    assert "It says: " in text_of(slot)
    text = prompt_of(tokenizer, template, {"q": "why?", "a": "so"}, upstream=["a"])
    assert value_of(text, "a", "so") == "so"
    nothing = prompt_of(tokenizer, template, {"q": "why?", "a": ""}, upstream=["a"])
    assert "It says" not in text_of(nothing)


def test_an_upstream_agent_without_a_slot_comes_first_in_a_message_of_its_own(tokenizer: Tokenizer) -> None:
    compiled = PromptTemplate("reader", AgentSpec(model="m", prompt="Now {{ q }}", system="Be brief."), ["a", "b"])
    messages = compiled.messages({"q": "why?", "a": "said a", "b": ""}, slots=())
    assert [(m.role, m.content.text) for m in messages] == [
        ("system", "Be brief."),
        ("user", "said a"),
        ("user", "Now why?"),
    ]
    prompt = tokenize(compiled.messages({"q": "why?", "a": "", "b": "said b"}, slots=["a"]), tokenizer, chat=True)
    slots = [index for index, part in enumerate(prompt.parts) if isinstance(part, Slot)]
    assert len(slots) == 1
    assert value_of(prompt, "b", "said b") == "said b"
    assert prompt.seen == {"q", "b"}


def test_without_a_chat_template_messages_stand_apart(tokenizer: Tokenizer) -> None:
    prompt = prompt_of(
        tokenizer, "{{ q }}:", {"q": "why", "a": "it is so"}, system="Be brief.", upstream=["a"], chat=False
    )
    assert text_of(prompt) == "Be brief.\n\nit is so\n\nwhy:"
    assert prompt.seen == {"q", "a"}


def test_templates_own_words_belong_to_nobody(tokenizer: Tokenizer) -> None:
    prompt = prompt_of(tokenizer, "Only words of the template.", {})
    assert prompt.seen == set()
    assert all(origin is None for part in prompt.parts if isinstance(part, Piece) for origin in part.origins)


def test_contents_are_where_the_messages_are(tokenizer: Tokenizer) -> None:
    prompt = prompt_of(tokenizer, "  {{ q }} ", {"q": "why?"}, system="Be brief.")
    contents = [prompt.whole.text[start:end].strip() for start, end in prompt.whole.contents]
    assert contents == ["Be brief.", "why?"]


def test_a_whole_prompt_is_what_stands_around_its_slots(tokenizer: Tokenizer) -> None:
    text, values = "A {{ a }} B {{ q }} C {{ a }}", {"q": "why?", "a": ""}
    around = prompt_of(tokenizer, text, values, slots=["a"], upstream=["a"])
    whole = around.whole
    assert whole.text.replace(" ", "") == prompt_of(tokenizer, text, values).whole.text.replace(" ", "")
    assert [whole.text[start:end] for start, end in whole.contents] == ["A  B why? C "]
    ends = [whole.text.index(words) + 2 for words in ("A ", "C ")]
    assert [whole.offsets[before - 1][1] for before, _ in around.slots] == ends
    for token, (start, end) in zip(whole.ids, whole.offsets, strict=True):
        assert tokenizer.raw.decode([token]) == whole.text[start:end]
    spelt = [whole.text[slice(*at)] for at, origin in zip(whole.offsets, whole.origins, strict=True) if origin]
    assert "".join(spelt).strip() == "why?"


def test_a_template_that_fails_on_its_values_is_named() -> None:
    compiled = PromptTemplate("reader", AgentSpec(model="m", prompt="fine\n{{ 1 / (q | length) }}"), [])
    with pytest.raises(InputError, match=r"^the prompt of agent 'reader' can't be rendered: .* \(line 2\)$"):
        compiled.messages({"q": ""})


def test_a_beginning_of_text_is_read_once_and_before_a_first_slot(tmp_path: Path) -> None:
    """Where there is no chat template, the tokenizer's own first token stands at the very beginning only."""
    from tokenizers import processors

    save_tokenizer(tmp_path, template=None, special=["<s>"])
    raw = AutoTokenizer.from_pretrained(tmp_path)
    first = raw.convert_tokens_to_ids("<s>")
    raw.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A", special_tokens=[("<s>", first)]
    )
    for template in ("{{ a }}why {{ a }}so", "say {{ a }}why"):
        prompt = prompt_of(Tokenizer(raw), template, {"a": ""}, slots=["a"], upstream=["a"], chat=False)
        assert prompt.ids.count(first) == 1
        assert isinstance(prompt.parts[0], Piece)
        assert prompt.parts[0].ids[0] == first
