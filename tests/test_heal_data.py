"""What healing reads: rows of any common form, as the token ids that are trained."""

import json
from pathlib import Path

import numpy as np
import pytest

from moeits.errors import HealingError
from moeits.healing.batches import UNTRAINED, Sequencer, collate
from moeits.healing.conversations import Conversation, RowDropped, Turn, as_conversation, read_rows
from moeits.healing.template import Template
from tests.healing_toys import conversations, texts, write_rows, write_tokenizer

transformers = pytest.importorskip("transformers")

TALK = {
    "conversations": [
        {"from": "system", "value": "w9"},
        {"from": "human", "value": "w1 w2"},
        {"from": "gpt", "value": "w3"},
        {"from": "human", "value": "w4"},
        {"from": "gpt", "value": "w5 w6"},
    ]
}
INSTRUCTION = {"instruction": "w1", "input": "w2", "output": "w3"}


def tokenizer(folder: Path, **settings):
    write_tokenizer(folder, **settings)
    return transformers.AutoTokenizer.from_pretrained(folder)


def sequencer(folder: Path, *, wanted: str = "auto", chat: bool = True, pad: str = "<pad>", **changes) -> Sequencer:
    settings = {"length": 32, "packing": False, "answers_only": False, "most": 1000, "seed": 0, **changes}
    return Sequencer(template=Template.of(tokenizer(folder, chat=chat, pad=pad), wanted), **settings)


def trained_words(made: Sequencer, row: dict) -> str:
    """The words whose loss is taken, of a data set of one row."""
    ids, labels = made.split([row], samples=None, holdout=0, valid=None).training[0]
    return made.template.tokenizer.decode(ids[labels != UNTRAINED])


@pytest.mark.parametrize(
    "row",
    [
        {"messages": [{"role": "user", "content": "w1"}, {"role": "assistant", "content": "w2"}]},
        {"conversations": [{"from": "human", "value": "w1"}, {"from": "gpt", "value": "w2"}]},
        {"instruction": "w1", "output": "w2"},
    ],
)
def test_the_same_conversation_is_the_same_in_every_form(row):
    assert as_conversation(row) == Conversation((Turn("user", "w1"), Turn("assistant", "w2")))


@pytest.mark.parametrize(
    "row",
    [
        {"conversations": [{"from": "human", "value": "w1"}]},
        {"conversations": [{"from": "human", "value": "w1"}, {"from": "gpt", "value": " "}]},
        {"instruction": "w1", "output": ""},
        {"text": "  "},
        {"something": "else"},
        {"conversations": [{"from": ["gpt"], "value": "w1"}, {"from": None, "value": "w1"}, "w1"]},
    ],
)
def test_a_row_without_an_answer_is_no_conversation(row):
    with pytest.raises(RowDropped):
        as_conversation(row)


def test_a_question_after_the_last_answer_is_left_out():
    turns = as_conversation({"conversations": [*TALK["conversations"], {"from": "human", "value": "w7"}]})
    assert turns == as_conversation(TALK)


def test_an_answer_only_loss_is_taken_on_every_answer_and_what_closes_it(tmp_path: Path):
    assert trained_words(sequencer(tmp_path, answers_only=True), TALK) == "w3 <eos> w5 w6 <eos>"


def test_a_whole_loss_is_taken_on_the_system_turn_too(tmp_path: Path):
    words = trained_words(sequencer(tmp_path), TALK)
    assert words.count("w0") == 5  # the names of the roles, which this tokenizer does not know
    assert words.replace("w0 ", "") == "w9 <eos> w1 w2 <eos> w3 <eos> w4 <eos> w5 w6 <eos>"


def test_without_a_chat_template_the_authors_template_is_used(tmp_path: Path):
    template = sequencer(tmp_path, chat=False).template
    conversation = as_conversation(INSTRUCTION)
    from moeits.healing.template import _instruction

    text = "".join(piece for piece, _ in _instruction(conversation))
    assert text == "Instruction:\nw1\n\nInput:\nw2\n\nResponse:\nw3"
    assert template.tokens(conversation).ids[-1] == template.tokenizer.eos_token_id


def test_the_end_of_sequence_is_trained_even_where_it_is_the_padding(tmp_path: Path):
    made = sequencer(tmp_path, chat=False, pad="<eos>")
    data = made.split([{"text": "w1 w2 w3"}, {"text": "w1"}], samples=None, holdout=0, valid=None)
    eos = made.template.tokenizer.eos_token_id
    batch = collate([data.training[0], data.training[1]], pad=eos)
    assert ((batch["labels"] == eos).sum(1) == 1).all()
    assert (batch["labels"][batch["attention_mask"] == 0] == UNTRAINED).all()


def test_the_end_of_sequence_is_trained_also_where_the_tokenizer_adds_it_by_itself(tmp_path: Path):
    from tokenizers.processors import TemplateProcessing

    made = sequencer(tmp_path, chat=False, answers_only=True)
    plain = trained_words(made, INSTRUCTION)
    made.template.tokenizer._tokenizer.post_processor = TemplateProcessing(
        single="$A <eos>", special_tokens=[("<eos>", made.template.tokenizer.eos_token_id)]
    )
    assert trained_words(made, INSTRUCTION) == plain == "w3 <eos>"


def test_packing_loses_no_token_and_fills_every_sequence_but_the_last(tmp_path: Path):
    apart, packed = (
        sequencer(tmp_path, packing=packing, length=8).split(texts(), samples=None, holdout=0, valid=None)
        for packing in (False, True)
    )
    whole = sequencer(tmp_path, length=100).split(texts(), samples=None, holdout=0, valid=None)
    assert packed.counts.tokens == whole.counts.tokens > apart.counts.tokens
    assert {len(ids) for ids, _ in packed.training.pairs[:-1]} == {8}
    assert np.array_equal(*(np.concatenate([ids for ids, _ in d.training.pairs]) for d in (packed, whole)))


def test_rows_are_used_held_out_dropped_and_cut_and_all_are_counted(tmp_path: Path):
    rows = [*texts(18), {"text": ""}, {"instruction": "w1", "output": ""}]
    counts = sequencer(tmp_path, length=8).split(rows, samples=None, holdout=0.25, valid=None).counts
    assert (counts.rows, counts.used, counts.held_out, counts.dropped, counts.cut) == (20, 14, 4, 2, 14)


def test_rows_that_the_steps_do_not_need_are_counted_and_not_tokenised(tmp_path: Path):
    for packing, used in ((False, 5), (True, 4)):  # five sequences of eight tokens: a text has 13 with its end
        made = sequencer(tmp_path, length=8, most=5, packing=packing)
        counts = made.split(texts(), samples=None, holdout=0, valid=None).counts
        assert (counts.sequences, counts.used, counts.spare) == (5, used, 24 - used)


def test_no_row_is_both_trained_and_held_out(tmp_path: Path):
    data = sequencer(tmp_path).split(texts(), samples=None, holdout=0.25, valid=None)
    trained, held_out = ({ids.tobytes() for ids, _ in s.pairs} for s in (data.training, data.held_out))
    assert not trained & held_out
    assert len(trained | held_out) == 24


def test_the_same_seed_gives_the_same_data_and_another_seed_other_data(tmp_path: Path):
    def digest(seed: int) -> str:
        data = sequencer(tmp_path, seed=seed).split(texts(), samples=10, holdout=0, valid=None)
        assert len(data.training) == 10
        return data.facts()["fingerprint"]

    assert digest(0) == digest(0) != digest(1)


def test_an_answer_beyond_the_sequence_drops_the_row(tmp_path: Path):
    short = sequencer(tmp_path, length=4, answers_only=True)
    with pytest.raises(HealingError, match="Raise --sequence-length"):
        short.split([TALK], samples=None, holdout=0, valid=None)


def test_held_out_rows_without_anything_to_measure_are_one_sentence(tmp_path: Path):
    with pytest.raises(HealingError, match="--valid has no row with an answer"):
        sequencer(tmp_path).split(texts(), samples=None, holdout=0, valid=[{"text": " "}])


def test_jsonl_json_and_parquet_hold_the_same_rows(tmp_path: Path):
    parquet, arrow = pytest.importorskip("pyarrow.parquet"), pytest.importorskip("pyarrow")
    rows = conversations(3)
    write_rows(tmp_path / "a.jsonl", rows)
    (tmp_path / "a.json").write_text(json.dumps(rows))
    parquet.write_table(arrow.Table.from_pylist(rows), tmp_path / "a.parquet")
    read = [list(read_rows(tmp_path / f"a.{kind}")) for kind in ("jsonl", "json", "parquet")]
    assert read[0] == read[1] == read[2] == rows


def test_a_hub_data_set_is_streamed_and_shuffled(monkeypatch: pytest.MonkeyPatch):
    datasets = pytest.importorskip("datasets")
    rows = datasets.Dataset.from_list(conversations(8)).to_iterable_dataset()
    asked = {}

    def load_dataset(name, **settings):
        asked.update(name=name, **settings)
        return rows

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    read = list(read_rows("org/name", samples=5))
    assert len(read) == 5
    assert asked == {"name": "org/name", "split": "train", "streaming": True}


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.jsonl", '{"text": "w1"}\n{"text"\n', "a.jsonl, line 2 is not JSON"),
        ("a.jsonl", "[1]\n", "line 1|row 1 is a list"),
        ("a.jsonl", b'{"text": "w1"}\n{"text": "caf\xe9"}\n', "a.jsonl, line 2 is not UTF-8 .*0xe9"),
        ("a.json", "{}", "should hold a list of rows"),
        ("a.csv", "x", "neither .jsonl nor .json nor .parquet"),
        ("a.parquet", "x", "cannot be read as Parquet"),
    ],
)
def test_a_file_that_holds_no_rows_is_one_sentence(tmp_path: Path, name: str, content: str | bytes, message: str):
    (tmp_path / name).write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(HealingError, match=message):
        list(read_rows(tmp_path / name))


def test_a_file_that_is_not_there_is_one_sentence():
    with pytest.raises(HealingError, match="is not a file, and not the name of a hub data set"):
        list(read_rows("nowhere.jsonl"))
