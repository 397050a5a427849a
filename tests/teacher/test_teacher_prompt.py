import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from teacher_models import save_model
from tokenizers import Regex, Tokenizer, models, normalizers, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

from d2llm.backbone import load_tokenizer
from d2llm.errors import InputError
from d2llm.teacher.prompt import PromptBuilder, answer_id, answer_ids, left_pad
from d2llm.teacher.templates import TEMPLATES, Template

QUESTION = "\nDoes the passage answer the query? Answer yes or no.\nAnswer:"


@pytest.fixture(scope="module")
def tokenizer(tiny_lm):
    return load_tokenizer(tiny_lm)


def test_a_prompt_is_the_template_with_its_texts(tokenizer):
    (ids,) = PromptBuilder(tokenizer, TEMPLATES["asym-en"]).build(["read the file"], ["def read(): ..."])
    assert tokenizer.decode(ids) == f"Query: read the file\nPassage:\ndef read(): ...{QUESTION}"


@pytest.mark.parametrize("name", ["sym-zh", "asym-zh"])
def test_chinese_templates(tokenizer, name):
    template = TEMPLATES[name]
    builder = PromptBuilder(tokenizer, template)
    assert tokenizer.decode([builder.yes]) == template.yes and tokenizer.decode([builder.no]) == template.no
    (ids,) = builder.build(["打开文件"], ["读取文件的内容"])
    assert tokenizer.decode(ids) == template.text.format(query="打开文件", passage="读取文件的内容")


def test_an_own_template_may_put_the_passage_first(tokenizer):
    own = Template("own", "asym", "P: {passage} Q: {query} OK?", " yes", " no")
    (ids,) = PromptBuilder(tokenizer, own).build(["q"], ["p"])
    assert tokenizer.decode(ids) == "P: p Q: q OK?"


def test_an_answer_of_several_tokens_is_an_error_that_names_them(tmp_path):
    # Knows both characters of 不是 and not the word.
    tokenizer = load_tokenizer(save_model(tmp_path, texts=["是", "不", " yes", " no"]))
    with pytest.raises(InputError, match=r"'不是': expected one token, this tokenizer makes 2: \['不', '是'\]"):
        PromptBuilder(tokenizer, TEMPLATES["sym-zh"])


def test_parts_of_a_character_are_named_as_the_tokenizer_names_them(tokenizer):
    with pytest.raises(InputError, match=r"'ñ': expected one token.*2: \['Ã', '±'\]"):
        answer_id(tokenizer, "ñ")
    with pytest.raises(InputError, match=r"'': expected one token.*0: \[\]"):
        answer_id(tokenizer, "")


def test_an_answer_that_the_tokenizer_does_not_know_is_refused():
    class Words:
        unk_token_id, unk_token = 0, "<unk>"

        def encode(self, text, add_special_tokens):
            return [{"yes": 1}.get(text, 0)]

    assert answer_id(Words(), "yes") == 1
    with pytest.raises(InputError, match=r"'maybe'.*does not know"):
        answer_id(Words(), "maybe")


def test_equal_answers_are_refused(tokenizer):
    with pytest.raises(InputError, match="both answers"):
        PromptBuilder(tokenizer, Template("own", "sym", "{query} {passage}?", " yes", " yes"))


@settings(deadline=None)
@given(
    st.text(min_size=1).filter(str.strip),
    st.text(min_size=1).filter(str.strip),
    st.integers(1, 12),
    st.integers(1, 12),
    st.sampled_from([1, 2]),
)
def test_truncation_never_cuts_the_question(tokenizer, query, passage, query_length, passage_length, version):
    builder = PromptBuilder(tokenizer, TEMPLATES["asym-en"], query_length, passage_length, version)
    (ids,) = builder.build([query], [passage])
    assert tokenizer.decode(ids).endswith(QUESTION)
    start = tokenizer.encode("Query:", add_special_tokens=False)
    assert ids[2 - version :][: len(start)] == start
    assert len(ids) <= builder.longest


def test_a_prompt_is_tokenised_as_it_reads(tokenizer):
    template = TEMPLATES["asym-en"]
    query, passage = "the file", "a socket of the server"
    (ids,) = PromptBuilder(tokenizer, template).build([query], [passage])
    assert ids == tokenizer.encode(template.text.format(query=query, passage=passage), add_special_tokens=False)
    (apart,) = PromptBuilder(tokenizer, template, version=1).build([query], [passage])
    blank = tokenizer.encode(" ", add_special_tokens=False)[0]
    # As adapters of before were tuned: BOS, and the blank before the query by itself.
    assert apart[0] == tokenizer.bos_token_id and apart.count(blank) == ids.count(blank) + 1
    (cut,) = PromptBuilder(tokenizer, template, query_length=1, passage_length=1).build([query], [passage])
    assert len(cut) < len(ids) and tokenizer.decode(cut).startswith("Query: the")


def test_control_tokens_in_a_text_are_plain_text(tokenizer):
    (ids,) = PromptBuilder(tokenizer, TEMPLATES["asym-en"]).build(["<eos>"], ["a <bos> b"])
    assert not {tokenizer.eos_token_id, tokenizer.bos_token_id} & set(ids)
    assert "Query: <eos>\nPassage:\na <bos> b\n" in tokenizer.decode(ids)


def test_a_tokenizer_begins_its_prompts_itself(tiny_lm):
    tokenizer = load_tokenizer(tiny_lm)
    bos, eos = tokenizer.bos_token_id, tokenizer.eos_token_id
    # As those that want BOS do; EOS at the end would stand where the answer is read.
    tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single="<bos> $A <eos>", special_tokens=[("<bos>", bos), ("<eos>", eos)]
    )
    (ids,) = PromptBuilder(tokenizer, TEMPLATES["asym-en"]).build(["a"], ["b"])
    assert ids[0] == bos and ids.count(bos) == 1 and eos not in ids
    spelled = Template("own", "asym", "<bos>Q: {query} P: {passage} OK?", " yes", " no")
    (ids,) = PromptBuilder(tokenizer, spelled).build(["a"], ["b"])
    assert ids[0] == bos and ids.count(bos) == 1


def test_a_tokenizer_that_adds_a_blank_takes_the_answers_without_theirs():
    # As SentencePiece makes them: a blank before every text, so that " yes" has two.
    backend = Tokenizer(models.WordLevel({"<unk>": 0, "▁": 1, "▁yes": 2, "▁no": 3, "▁Ja": 4}, "<unk>"))
    backend.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    backend.pre_tokenizer = pre_tokenizers.Split(Regex("▁"), "merged_with_next")
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, unk_token="<unk>")
    assert len(tokenizer.encode(" yes", add_special_tokens=False)) == 2
    assert answer_ids(tokenizer, " yes", " no") == (2, 3)
    with pytest.raises(InputError, match=r"' Ja'.*give a template \(--template\) whose answers are one token each"):
        answer_ids(tokenizer, " Ja", " Nein")


@pytest.mark.parametrize(
    ("queries", "passages", "match"),
    [
        (["a"], ["b", "c"], "passages: expected one for each of 1 queries, got 2"),
        (["a", " \n"], ["b", "c"], r"queries\[1\]: expected a non-empty text"),
        (["a"], [""], r"passages\[0\]"),
        (["a"], [None], r"passages\[0\].*None"),
        ("ab", ["b", "c"], "queries: expected a list of texts"),
    ],
)
def test_bad_texts_are_refused(tokenizer, queries, passages, match):
    with pytest.raises(InputError, match=match):
        PromptBuilder(tokenizer, TEMPLATES["asym-en"]).build(queries, passages)


@pytest.mark.parametrize("name", ["query_length", "passage_length"])
def test_lengths_below_one_are_refused(tokenizer, name):
    with pytest.raises(InputError, match=f"{name}: expected at least 1, got 0"):
        PromptBuilder(tokenizer, TEMPLATES["asym-en"], **{name: 0})


def test_no_pairs_are_no_prompts(tokenizer):
    assert PromptBuilder(tokenizer, TEMPLATES["asym-en"]).build([], []) == []


def test_left_pad():
    inputs = left_pad([[5, 6, 7], [8]], 0)
    assert inputs["input_ids"].tolist() == [[5, 6, 7], [0, 0, 8]]
    assert inputs["attention_mask"].tolist() == [[1, 1, 1], [0, 0, 1]]
    assert inputs["position_ids"].tolist() == [[0, 1, 2], [0, 0, 0]]
    assert all(tensor.dtype == torch.int64 for tensor in inputs.values())
