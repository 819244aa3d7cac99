"""Data of strangers: no turn vanishes, and a row that cannot be one whole is dropped, with the reason."""

import json
from pathlib import Path
from typing import Any

import pytest

from moeits.errors import HealingError
from moeits.healing.chat import ChatTemplate, check_nothing_vanished
from moeits.healing.conversations import Conversation, RowDropped, Turn, as_conversation, read_rows
from moeits.healing.template import Template
from tests.healing_toys import CHAT_TEMPLATE, write_tokenizer
from tests.test_heal_data import sequencer, trained_words

transformers = pytest.importorskip("transformers")

CALL = {"type": "function", "function": {"name": "weather", "arguments": {"city": "Jaén"}}}
TOOLS = [{"type": "function", "function": {"name": "weather", "parameters": {}}}]
WITH_TOOLS = {
    "tools": json.dumps(TOOLS),
    "messages": [
        {"role": "developer", "content": "Be brief."},
        {"role": "user", "content": [{"type": "text", "text": "Is it "}, {"type": "text", "text": "warm?"}]},
        {"role": "assistant", "content": None, "tool_calls": [CALL]},
        {"role": "tool", "content": "31 <degrees>"},
        {"role": "assistant", "content": "Yes."},
    ],
}
SHAREGPT = {
    "tools": TOOLS,
    "conversations": [
        {"from": "human", "value": "Is it warm?"},
        {"from": "function_call", "value": json.dumps({"name": "weather", "arguments": {"city": "Jaén"}})},
        {"from": "observation", "value": "31"},
        {"from": "gpt", "value": "Yes."},
    ],
}
# In the manner of Qwen and Mistral: tools first, calls as JSON, blocks with {% generation %}, a break, a namespace.
RICH = """\
{%- if tools %}{{ tools | tojson }}{% endif %}
{%- set state = namespace(count=0) %}
{%- for m in messages %}
    {%- set state.count = state.count + 1 %}
    {%- if m.reasoning_content %}<think>{{ m.reasoning_content }}</think>{% endif %}
    {%- if state.count > 90 %}{% break %}{% endif %}
<{{ m.role }}>{% generation %}{{ m.content }}{% endgeneration %}
    {%- for call in m.tool_calls or [] %}{{ call.function | tojson(indent=1) }}{% endfor %}{{ eos_token }}
{%- endfor %}
{%- if add_generation_prompt %}<assistant>{% endif %}
"""


def speaker(folder: Path, template: str | None) -> Any:
    write_tokenizer(folder, chat=False)
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    tokenizer.chat_template = template
    return tokenizer


@pytest.mark.parametrize("template", [RICH, CHAT_TEMPLATE, "{{ messages | tojson }} {{ eos_token }}"])
@pytest.mark.parametrize("row", [WITH_TOOLS, SHAREGPT])
@pytest.mark.parametrize("prompt", [True, False])
def test_a_chat_template_renders_as_in_transformers(tmp_path: Path, template: str, row: dict, prompt: bool):
    from moeits.healing.chat import message_of

    tokenizer, conversation = speaker(tmp_path, template), as_conversation(row)
    stock = tokenizer.apply_chat_template(
        [message_of(turn) for turn in conversation.turns],
        tools=conversation.tools,
        tokenize=False,
        add_generation_prompt=prompt,
    )
    turns = len(conversation.turns)
    assert ChatTemplate(tokenizer).rendered(conversation, turns, add_generation_prompt=prompt) == stock


@pytest.mark.parametrize(("row", "roles"), [(WITH_TOOLS, "developer user assistant tool assistant"), (SHAREGPT, None)])
def test_tool_calls_their_results_and_texts_in_parts_are_all_in_the_text(tmp_path: Path, row: dict, roles: str | None):
    conversation = as_conversation(row)
    template = ChatTemplate(speaker(tmp_path, RICH))
    text = template.rendered(conversation, len(conversation.turns), add_generation_prompt=False)
    check_nothing_vanished(conversation, text)
    for said in ("Is it warm?", '"name": "weather"', "Jaén", "31", "Yes."):
        assert said in text
    assert roles is None or " ".join(turn.role for turn in conversation.turns) == roles
    with pytest.raises(RowDropped, match="a turn that the chat template leaves out"):
        check_nothing_vanished(conversation, text.replace("31", ""))


def test_a_template_that_leaves_tool_calls_out_drops_the_row_and_counts_it(tmp_path: Path):
    data = sequencer(tmp_path).split(
        [WITH_TOOLS, {"text": "w1 w2"}, {"text": "w3 w4"}], samples=None, holdout=0, valid=None
    )
    assert data.counts.dropped_by_reason == {"a turn that the chat template leaves out": 1}
    assert (data.counts.rows, data.counts.used, data.counts.dropped) == (3, 2, 1)


def test_without_a_chat_template_a_row_with_tools_is_dropped(tmp_path: Path):
    with pytest.raises(RowDropped, match="only a chat template"):
        Template.of(speaker(tmp_path, None), "auto").tokens(as_conversation(SHAREGPT))


@pytest.mark.parametrize(
    ("turn", "reason"),
    [
        ({"from": "narrator", "value": "w1"}, "unknown speaker"),
        ({"role": "user", "content": [{"type": "image", "url": "x"}]}, "parts that are not text"),
        ({"role": "user", "content": {"a": 1}}, "without a text"),
        ({"role": "user"}, "without a text"),
        ({"from": "function_call", "value": "not JSON"}, "tool call that cannot be read"),
        ({"role": "assistant", "content": "", "tool_calls": [7]}, "tool call that cannot be read"),
        ("w1", "not an object"),
    ],
)
def test_a_turn_that_cannot_be_read_drops_the_whole_conversation(turn: Any, reason: str):
    rest = [{"role": "user", "content": "w1"}, {"role": "assistant", "content": "w2"}]
    with pytest.raises(RowDropped, match=reason):
        as_conversation({"messages": [rest[0], turn, rest[1]]})


def test_a_conversation_may_begin_with_the_assistant(tmp_path: Path):
    row = {
        "messages": [{"role": r, "content": c} for r, c in (("assistant", "w1"), ("user", "w2"), ("assistant", "w3"))]
    }
    assert trained_words(sequencer(tmp_path, answers_only=True), row) == "w1 <eos> w3 <eos>"


def test_half_a_character_drops_the_row(tmp_path: Path):
    rows = [json.loads('{"text": "\\ud800 w1"}'), {"text": "w1 w2"}]
    counts = sequencer(tmp_path).split(rows, samples=None, holdout=0, valid=None).counts
    assert counts.dropped_by_reason == {"half of a character (a lone surrogate)": 1}


@pytest.mark.parametrize(
    "template",
    [
        "{{ 1 / 0 }}",
        "{{ messages[0]['content'] + 1 }}",
        "{% include '/etc/passwd' %}",
        "{% for i in range(10**9) %}x{% endfor %}",
        "{% macro m() %}{{ m() }}{% endmacro %}{{ m() }}",
        "{{ raise_exception('no') }}",
        "{{ cycler.__init__.__globals__.os.getcwd() }}",
        "{{ messages[0]['content'] }}",
    ],
)
def test_whatever_a_chat_template_raises_drops_the_row(tmp_path: Path, template: str):
    made = Template.of(speaker(tmp_path, template), "auto")
    conversation = Conversation((Turn("user", "w1"), Turn("assistant", "w2")))
    with pytest.raises(RowDropped):
        made.tokens(conversation)


@pytest.mark.parametrize("template", [5, "{% for %}", {"rag": "x"}])
def test_what_is_not_a_chat_template_is_one_sentence(tmp_path: Path, template: Any):
    with pytest.raises(HealingError, match=r"chat template .*--template instruction"):
        Template.of(speaker(tmp_path, template), "auto")


@pytest.mark.parametrize(
    "template",
    [
        "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}",
        "{{ 10 ** (10 ** (8 + messages|length)) }}",
    ],
)
def test_a_chat_template_that_never_ends_is_ended(tmp_path: Path, template: str, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("moeits.healing.chat.SECONDS", 0.5)
    conversation = Conversation((Turn("user", "w1"), Turn("assistant", "w2")))
    with pytest.raises(HealingError, match=r"did not finish one conversation within 0\.5 s"):
        ChatTemplate(speaker(tmp_path, template)).rendered(conversation, 2, add_generation_prompt=False)


def test_a_chat_template_that_writes_without_end_is_ended(tmp_path: Path):
    doubled = "{% set s = namespace(x='x') %}{% for i in range(60) %}{% set s.x = s.x ~ s.x %}{% endfor %}{{ s.x }}"
    conversation = Conversation((Turn("user", "w1"), Turn("assistant", "w2")))
    with pytest.raises((RowDropped, HealingError)):
        ChatTemplate(speaker(tmp_path, doubled)).rendered(conversation, 2, add_generation_prompt=False)


def test_if_no_row_is_left_the_sentence_says_why(tmp_path: Path):
    made = sequencer(tmp_path)
    made.template.tokenizer.chat_template = "{{ 1 / 0 }}"
    row = {"instruction": "w1", "output": "w2"}
    with pytest.raises(HealingError, match=r"2 with a conversation that the chat template refuses.*ZeroDivisionError"):
        made.split([row, row], samples=None, holdout=0, valid=None)


@pytest.mark.parametrize("name", ["a.jsonl", "a.json"])
@pytest.mark.parametrize("content", ["[" * 5000 + "]" * 5000, '[{"text": ' + "9" * 5000 + "}]"])
def test_json_that_python_chokes_on_is_one_sentence(tmp_path: Path, name: str, content: str):
    (tmp_path / name).write_text(content)
    with pytest.raises(HealingError, match=r"is not JSON"):
        list(read_rows(tmp_path / name))
