import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from d2llm.errors import InputError
from d2llm.teacher.templates import TEMPLATES, Template, find_template

TEXT = "A: {query}\nB: {passage}\nSame?"


def make(text: str = TEXT, task: str = "sym") -> Template:
    return Template("own", task, text, " yes", " no")


def test_built_in_templates_cover_both_tasks_in_both_languages():
    assert {(template.task, name.split("-")[1]) for name, template in TEMPLATES.items()} == {
        (task, language) for task in ("sym", "asym") for language in ("en", "zh")
    }
    assert (find_template("sym-zh").yes, find_template("sym-zh").no) == ("是", "不是")
    assert (find_template("asym-zh").yes, find_template("asym-zh").no) == ("能", "不能")


def test_pieces_keep_their_order_and_literal_braces():
    template = make("{{x}} {passage} of {query}: {{}}?")
    assert template.pieces() == [("{x} ", "passage"), (" of ", "query"), (": {}?", None)]


@pytest.mark.parametrize("name", sorted(TEMPLATES))
def test_pieces_put_together_are_the_formatted_text(name):
    template = TEMPLATES[name]
    texts = {"query": "where {is} it", "passage": "here"}
    joined = "".join(literal + (texts[field] if field else "") for literal, field in template.pieces())
    assert joined == template.text.format(**texts)


@pytest.mark.parametrize(
    ("text", "match"),
    [
        ("{query} is it?", "once each"),
        ("", "once each"),
        ("{query} {query} {passage}?", "once each"),
        ("{query} {passage} {other}?", "once each"),
        ("{query} {} {passage}?", "once each"),
        ("{query!r} {passage}?", "without a format"),
        ("{query:>9} {passage}?", "without a format"),
        ("{query} {passage?", "own"),
        ("{query} {passage}", "question"),
        ("{query} {passage} \n", "question"),
    ],
)
def test_bad_texts_are_refused(text, match):
    with pytest.raises(InputError, match=match):
        make(text)


def test_unknown_task_and_name_are_refused():
    with pytest.raises(InputError, match=r"task.*'rank'"):
        make(task="rank")
    with pytest.raises(InputError, match=r"asym-en.*'asym-fr'"):
        find_template("asym-fr")


@settings(deadline=None)
@given(st.text(alphabet="{}!:. aqueryps", max_size=30))
def test_any_text_is_a_template_or_an_input_error(text):
    try:
        template = make(text)
    except InputError:
        return
    assert template.text.format(query="Q", passage="P")


@pytest.mark.parametrize("answers", [("", " no"), (" yes", " "), (3, "no")])
def test_empty_answers_are_refused(answers):
    with pytest.raises(InputError, match="template 'own': yes, no: expected a non-empty text"):
        Template("own", "sym", TEXT, *answers)
