import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from d2llm.bm25 import BM25
from d2llm.data.example import Example
from d2llm.errors import InputError
from d2llm.teacher.groups import HARD_POOL, make_groups

WORDS = ["open", "close", "read", "write", "file", "socket", "server", "date"]
EXAMPLES = [Example(f"{a} the {b}", f"def {a}_{b}(): {b}") for a in WORDS[:4] for b in WORDS[4:]]
CORPUS = [example.positive for example in EXAMPLES]


def test_hard_negatives_come_first_and_are_never_the_positive():
    groups = make_groups(EXAMPLES, CORPUS, hard=3, easy=2)
    assert [group.query for group in groups] == [example.query for example in EXAMPLES]
    _, found = BM25(CORPUS).search([example.query for example in EXAMPLES], len(CORPUS))
    for group, row in zip(groups, found, strict=True):
        assert len(set(group.passages)) == 6
        pool = [CORPUS[i] for i in row if CORPUS[i] != group.positive][:HARD_POOL]
        assert set(group.negatives[:3]) <= set(pool)


def test_the_draw_depends_on_the_seed_and_not_on_the_order():
    groups = make_groups(EXAMPLES, CORPUS)
    assert make_groups(EXAMPLES[::-1], CORPUS) == groups[::-1]
    assert make_groups(EXAMPLES, CORPUS, seed=1) != groups


def test_other_answers_to_the_query_are_no_negatives():
    query = EXAMPLES[0].query
    others = [Example(query, passage) for passage in CORPUS[1:9]]
    (group,) = make_groups(EXAMPLES[:1], CORPUS, positives=others)
    assert set(group.negatives).isdisjoint(example.positive for example in others)
    for group in make_groups([EXAMPLES[0], *others], CORPUS):
        assert set(group.negatives).isdisjoint(CORPUS[:9])


def test_positives_count_whatever_their_white_space_and_either_way_round():
    sym = Example("open the file", "open a file", task="sym")
    corpus = [" open  the file", "open a\tfile", "open the file now", "close the file", "read the file"]
    for seed in range(5):
        forth, back = make_groups([sym, Example(corpus[2], "open the file", task="sym")], corpus, hard=1, seed=seed)
        assert set(forth.negatives) == set(corpus[3:])
        assert not {corpus[0], corpus[2]} & set(back.negatives)


@settings(max_examples=30, deadline=None)
@given(st.integers(1, 12), st.integers(0, 4), st.integers(0, 4), st.integers(0, 9))
def test_groups_are_full_or_left_out(size, hard, easy, seed):
    if hard + easy == 0:
        with pytest.raises(InputError, match="hard, easy"):
            make_groups(EXAMPLES, CORPUS, hard=0, easy=0)
        return
    groups = make_groups(EXAMPLES[:4], CORPUS[:size], hard=hard, easy=easy, seed=seed)
    for group in groups:
        assert len(group.negatives) == hard + easy and group.positive not in group.negatives
        assert len(set(group.negatives)) == hard + easy
    if size >= hard + easy + 1 and size <= HARD_POOL:
        assert len(groups) == 4


def test_bad_input_is_refused():
    with pytest.raises(InputError, match="got -1 and 1"):
        make_groups(EXAMPLES, CORPUS, hard=-1)
    with pytest.raises(InputError):
        make_groups(EXAMPLES, [])
