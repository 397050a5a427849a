import json
import math
import shutil
import signal
import warnings
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from interrupted_tuning import CONFIG, GROUPS, fresh, tune_steps
from safetensors.torch import load_file
from teacher_models import save_model

from d2llm.data.example import Example
from d2llm.errors import FormatError, InputError, MismatchError, MissingError
from d2llm.teacher.adapter import ADAPTER_WEIGHTS, SETTINGS, save_adapter
from d2llm.teacher.model import Teacher
from d2llm.teacher.templates import TEMPLATES, Template
from d2llm.teacher.tuning import TUNING, TuningConfig, tune, tuning_loss
from tests.processes import exit_code

QUERIES, PASSAGES = ["the file 3", "the file 3"], ["a socket 3", "server 3"]


@pytest.fixture(scope="module")
def tuned(tiny_lm, tmp_path_factory):
    """A tuned teacher and the folder of its run."""
    folder = tmp_path_factory.mktemp("tuned")
    return tune_steps(tiny_lm, folder)[0], folder


@settings(deadline=None)
@given(st.lists(st.lists(st.floats(-50, 50), min_size=4, max_size=4), min_size=1, max_size=5))
def test_tuning_loss_is_its_formula(rows):
    expected = 0.0
    for d in rows:
        largest = max(d)
        expected += largest + math.log(sum(math.exp(x - largest) for x in d)) - d[0]
        softplus = [max(x, 0) + math.log1p(math.exp(-abs(x))) for x in (-d[0], *d[1:])]
        expected += 0.5 * softplus[0] + 0.5 / 3 * sum(softplus[1:])
    loss = tuning_loss(torch.tensor(rows, dtype=torch.float64))
    assert loss.shape == () and loss.item() == pytest.approx(expected / len(rows), rel=1e-9, abs=1e-12)


def test_tuning_loss_is_finite_with_its_gradient_at_extremes():
    differences = torch.tensor([[-1e4, 1e4], [1e4, -1e4]], requires_grad=True)
    tuning_loss(differences).backward()
    assert differences.grad.isfinite().all()


def test_tuning_teaches_the_groups(tuned, tiny_lm):
    teacher, _ = tuned
    losses = []
    for each in (fresh(tiny_lm), teacher):
        rows = [each.judge([group.query] * 3, group.passages, "asym")[0] for group in GROUPS]
        losses.append(tuning_loss(torch.tensor(np.array(rows)).diff(dim=2).neg().squeeze(2)).item())
    assert losses[1] < losses[0] - 0.1
    assert not teacher.decoder.training


def test_a_tuned_teacher_is_another_teacher(tuned, tiny_lm):
    teacher, folder = tuned
    loaded = Teacher.from_pretrained(tiny_lm, folder / "adapter")
    assert teacher.header()["adapter"] is not None
    assert loaded.header() == teacher.header()


def test_float32_adapters_are_restored_bit_for_bit(tuned, tiny_lm):
    teacher, folder = tuned
    loaded = Teacher.from_pretrained(tiny_lm, folder / "adapter")
    assert loaded.limits == {"query_length": 20, "passage_length": 30}
    for one, two in zip(teacher.judge(QUERIES, PASSAGES, "asym"), loaded.judge(QUERIES, PASSAGES, "asym"), strict=True):
        np.testing.assert_array_equal(one, two)
    weights = loaded.decoder.state_dict()
    assert all(torch.equal(value, weights[name]) for name, value in teacher.decoder.state_dict().items())


def test_loading_a_tuned_teacher_says_nothing(tuned, tiny_lm, tmp_path, capfd):
    adapter = shutil.copytree(tuned[1] / "adapter", tmp_path / "adapter")
    config = json.loads((adapter / "adapter_config.json").read_text())
    # Neither a folder nor a name that a hub knows.
    (adapter / "adapter_config.json").write_text(json.dumps({**config, "base_model_name_or_path": "pypi:a-package"}))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        Teacher.from_pretrained(tiny_lm, adapter)
    printed = capfd.readouterr()
    assert printed.out == printed.err == ""


@pytest.mark.parametrize(
    ("name", "old", "new"),
    [
        (SETTINGS, b'"query_length": 20', b'"query_length": 21'),
        ("adapter_config.json", b'"lora_alpha": 8', b'"lora_alpha": 9'),
        (ADAPTER_WEIGHTS, None, None),
    ],
)
def test_an_altered_adapter_is_refused(tuned, tiny_lm, tmp_path, name, old, new):
    path = shutil.copytree(tuned[1] / "adapter", tmp_path / "adapter") / name
    content = path.read_bytes()
    path.write_bytes(content.replace(old, new) if old else content[:-1] + bytes([content[-1] ^ 1]))
    assert path.read_bytes() != content
    with pytest.raises(FormatError, match="SHA-256 differs"):
        Teacher.from_pretrained(tiny_lm, path.parent)


@pytest.mark.parametrize(
    ("name", "value"),
    [("r", 30000), ("r", "x"), ("use_dora", True), ("lora_alpha", math.inf), ("peft_type", "IA3"), ("peft_type", None)],
)
def test_peft_settings_that_no_tuning_writes_are_refused(tuned, tiny_lm, tmp_path, name, value):
    path = shutil.copytree(tuned[1] / "adapter", tmp_path / "adapter") / "adapter_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), name: value}))
    settings = json.loads((path.parent / SETTINGS).read_text())
    del settings["sha256"]  # As of before it was kept.
    (path.parent / SETTINGS).write_text(json.dumps(settings))
    with pytest.raises(FormatError, match="rank 30000" if value == 30000 else f"{name}: expected"):
        Teacher.from_pretrained(tiny_lm, path.parent)


def test_float16_adapters_are_half_the_size_and_nearly_the_same(tuned, tiny_lm, tmp_path):
    teacher, folder = tuned
    save_adapter(teacher.decoder, teacher.settings(), tmp_path / "half", torch.float16)
    half, full = load_file(tmp_path / "half" / ADAPTER_WEIGHTS), load_file(folder / "adapter" / ADAPTER_WEIGHTS)
    assert half.keys() == full.keys() and all("lora_" in name for name in half)
    assert all(torch.equal(half[name], value.half()) for name, value in full.items())
    loaded = Teacher.from_pretrained(tiny_lm, tmp_path / "half")
    expected, _ = teacher.judge(QUERIES, PASSAGES, "asym")
    np.testing.assert_allclose(loaded.judge(QUERIES, PASSAGES, "asym")[0], expected, atol=2e-2)


def test_an_adapter_folder_holds_what_is_needed_and_no_more(tuned, tiny_lm):
    _, folder = tuned
    assert {file.name for file in (folder / "adapter").iterdir()} == {SETTINGS, ADAPTER_WEIGHTS, "adapter_config.json"}
    settings = json.loads((folder / "adapter" / SETTINGS).read_text())
    assert len(settings.pop("sha256")) == 64
    assert settings == {
        "base": tuned[0].origin["base"],
        "num_layers": None,
        "query_length": 20,
        "passage_length": 30,
        "prompt": 2,
        "templates": [asdict(TEMPLATES["asym-en"])],
    }
    assert json.loads((folder / "adapter" / "adapter_config.json").read_text())["base_model_name_or_path"] == tiny_lm


@pytest.mark.parametrize(
    ("kill_at", "left"), [(7, [7, 8, 9]), (9, [])], ids=["between two checkpoints", "before the adapter is saved"]
)
def test_a_killed_tuning_goes_on_to_the_same_adapter(tuned, tiny_lm, tmp_path, kill_at, left):
    assert exit_code(tune_steps, tiny_lm, tmp_path, kill_at) == -signal.SIGKILL
    assert not (tmp_path / "adapter").exists()
    # One that was being written when the process was killed.
    shutil.copytree(tmp_path / "checkpoint-6", tmp_path / "checkpoint-99")
    (tmp_path / "checkpoint-99" / "trainer_state.json").unlink()
    assert tune_steps(tiny_lm, tmp_path)[1] == left
    assert contents(tmp_path / "adapter") == contents(tuned[1] / "adapter")


def test_a_finished_tuning_run_again_does_nothing(tuned, tiny_lm, tmp_path):
    teacher, folder = tuned
    again = shutil.copytree(folder, tmp_path / "again")
    before = sorted((path, path.stat().st_mtime_ns) for path in (again / "adapter").iterdir())
    for _ in range(2):
        loaded, steps = tune_steps(tiny_lm, again)
        assert steps == [] and loaded.header() == teacher.header()
    assert sorted((path, path.stat().st_mtime_ns) for path in (again / "adapter").iterdir()) == before
    assert {path.name for path in again.glob("checkpoint-*")} == {path.name for path in folder.glob("checkpoint-*")}
    one, two = teacher.judge(QUERIES, PASSAGES, "asym")[0], loaded.judge(QUERIES, PASSAGES, "asym")[0]
    np.testing.assert_array_equal(one, two)


def test_a_folder_of_another_tuning_is_refused(tuned, tiny_lm, tmp_path):
    again = shutil.copytree(tuned[1], tmp_path / "again")
    with pytest.raises(MismatchError, match=r"learning_rate: expected 0.01, .*again was started, got 0.1; .*another f"):
        tune(fresh(tiny_lm), GROUPS, again, replace(CONFIG, learning_rate=0.1))
    with pytest.raises(MismatchError, match=r"groups: expected '10, .*got '9, "):
        tune(fresh(tiny_lm), GROUPS[1:], again, CONFIG)
    with pytest.raises(MismatchError, match="passage_length: expected 30"):
        tune(Teacher.from_pretrained(tiny_lm, query_length=20, passage_length=31), GROUPS, again, CONFIG)
    assert contents(again / "adapter") == contents(tuned[1] / "adapter")
    (again / TUNING).unlink()
    with pytest.raises(MissingError, match=r"tuning.json: file not found, so that nothing tells"):
        tune(fresh(tiny_lm), GROUPS, again, CONFIG)


def contents(folder: Path) -> list[bytes]:
    """What decides an adapter's judgements, as bytes; peft lists the adapted modules in any order."""
    return [(folder / name).read_bytes() for name in (ADAPTER_WEIGHTS, SETTINGS)]


def test_both_tasks_are_tuned_together(tiny_lm, tmp_path):
    # The same texts under both tasks, with the answers swapped: only the template tells what is asked.
    swapped = [
        replace(each, positive=each.negatives[0], negatives=(each.positive, each.negatives[1])) for each in GROUPS
    ]
    groups = [*GROUPS, *(replace(group, task="sym") for group in swapped)]

    def losses(teacher):
        for task in ("asym", "sym"):
            asked = [group for group in groups if group.task == task]
            rows = [teacher.judge([group.query] * 3, group.passages, task)[0] for group in asked]
            yield tuning_loss(torch.tensor(np.array(rows)).diff(dim=2).neg().squeeze(2)).item()

    before = list(losses(fresh(tiny_lm)))
    after = list(losses(tune(fresh(tiny_lm), groups, tmp_path, replace(CONFIG, steps=40, save_steps=40))))
    assert all(new < old - 0.1 for new, old in zip(after, before, strict=True)), (before, after)
    loaded = Teacher.from_pretrained(adapter=tmp_path)
    assert sorted(loaded.builders) == ["asym", "sym"] and list(losses(loaded)) == pytest.approx(after)


def test_a_tuned_teacher_learns_on(tuned, tiny_lm, tmp_path):
    _, folder = tuned
    config = replace(CONFIG, steps=4, save_steps=2, lora_r=16)

    def again(output=tmp_path):
        return tune(Teacher.from_pretrained(tiny_lm, folder / "adapter"), GROUPS, output, config)

    made = again()
    before, after = (load_file(each / "adapter" / ADAPTER_WEIGHTS) for each in (folder, tmp_path))
    assert {name: value.shape for name, value in before.items()} == {name: after[name].shape for name in after}
    assert any(not torch.equal(before[name], after[name]) for name in after)
    frozen = {name: value for name, value in fresh(tiny_lm).decoder.state_dict().items()}
    assert all(torch.equal(value, frozen[name]) for name, value in made.decoder.unload().state_dict().items())
    # Killed half way, it goes on to the same weights; finished, it is loaded.
    shutil.copytree(tmp_path, tmp_path / "killed", ignore=shutil.ignore_patterns("adapter", "checkpoint-4"))
    again(tmp_path / "killed")
    resumed = load_file(tmp_path / "killed" / "adapter" / ADAPTER_WEIGHTS)
    assert all(torch.equal(resumed[name], after[name]) for name in after)
    assert again().header() == Teacher.from_pretrained(tiny_lm, tmp_path).header()
    with pytest.raises(MismatchError, match="adapter"):
        tune(fresh(tiny_lm), GROUPS, tmp_path, config)


def test_groups_must_be_alike(tuned, tiny_lm, tmp_path):
    teacher, _ = tuned
    asym_only = Teacher.from_pretrained(tiny_lm, templates=[TEMPLATES["asym-en"]])
    with pytest.raises(InputError, match="templates for .*'asym'.*got 'sym'"):
        tune(asym_only, [*GROUPS, Example("q", "p", ("n", "m"), "sym")], tmp_path, CONFIG)
    for groups in ([], [*GROUPS, Example("q", "p", ("n",))]):
        with pytest.raises(InputError, match="groups: expected one"):
            tune(teacher, groups, tmp_path, CONFIG)
    with pytest.raises(InputError, match="2 or more"):
        tune(teacher, [Example("q", "p")], tmp_path, CONFIG)


def test_save_adapter_needs_one(shared_teacher, tmp_path):
    with pytest.raises(InputError, match="with an adapter"):
        save_adapter(shared_teacher.decoder, shared_teacher.settings(), tmp_path / "adapter")
    assert not (tmp_path / "adapter").exists()


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("steps", 0),
        ("groups_per_step", 0),
        ("lora_r", 0),
        ("save_steps", 0),
        ("warmup_steps", -1),
        ("learning_rate", 0),
    ],
)
def test_bad_settings_are_refused(name, value):
    with pytest.raises(InputError, match=f"{name}: expected"):
        TuningConfig(**{name: value})


def test_an_adapter_for_another_model_is_a_mismatch(tuned, tiny_lm, tmp_path):
    _, folder = tuned
    with pytest.raises(MismatchError, match="num_layers: the adapter was tuned with None layers, got 1"):
        Teacher.from_pretrained(tiny_lm, folder / "adapter", num_layers=1)
    for name, sizes in {
        "narrow": {"hidden_size": 16},
        "shallow": {"num_hidden_layers": 1},
    }.items():
        other = save_model(tmp_path / name, **sizes)
        with pytest.raises(MismatchError, match="adapter"):
            Teacher.from_pretrained(other, folder / "adapter")


def test_an_adapter_refuses_another_base_of_the_same_shape(tuned, tiny_lm, tmp_path):
    _, folder = tuned
    other = save_model(tmp_path / "other", initializer_range=0.2)
    named = f"model: the adapter was tuned on {tiny_lm!r} .*got {other!r}.*leave it out"
    for dtype in (torch.float32, torch.bfloat16, torch.float16):
        with pytest.raises(MismatchError, match=named):
            Teacher.from_pretrained(other, folder / "adapter", dtype=dtype)
    copy = shutil.copytree(tiny_lm, tmp_path / "copy")
    assert Teacher.from_pretrained(copy, folder / "adapter", dtype=torch.bfloat16).origin["model"] == str(copy)


def test_an_adapter_is_all_that_a_teacher_needs(tuned, tiny_lm, tmp_path):
    # The folder of the tuning says the same as that of the adapter.
    for folder in (tuned[1], tuned[1] / "adapter"):
        assert Teacher.from_pretrained(adapter=folder).header() == tuned[0].header()
    with pytest.raises(InputError, match="got neither"):
        Teacher.from_pretrained()


def test_an_adapter_keeps_its_template(tuned, tiny_lm):
    folder = tuned[1] / "adapter"
    loaded = Teacher.from_pretrained(tiny_lm, folder)
    with pytest.raises(InputError, match=r"templates for \['asym'\], got 'sym'; give a template for it, or tune"):
        loaded.judge(["a"], ["b"], "sym")
    loaded = Teacher.from_pretrained(tiny_lm, folder, templates=[TEMPLATES["sym-en"]])
    assert sorted(loaded.builders) == ["asym", "sym"]
    own = Template("own", "asym", "{query} {passage}?", " yes", " no")
    with pytest.raises(MismatchError, match="tuned with 'asym-en' for asym, got 'own'; leave the template out"):
        Teacher.from_pretrained(tiny_lm, folder, templates=[own])


def test_faulty_adapter_folders_are_named(tuned, tiny_lm, tmp_path):
    _, folder = tuned
    for name in (SETTINGS, ADAPTER_WEIGHTS, "adapter_config.json"):
        broken = tmp_path / name
        shutil.copytree(folder / "adapter", broken)
        (broken / name).unlink()
        with pytest.raises(MissingError, match=name):
            Teacher.from_pretrained(tiny_lm, broken)
    weights = tmp_path / SETTINGS / ADAPTER_WEIGHTS
    (tmp_path / SETTINGS / SETTINGS).write_text('{"num_layers": null}')
    with pytest.raises(FormatError, match="query_length"):
        Teacher.from_pretrained(tiny_lm, tmp_path / SETTINGS)
    shutil.copy(folder / "adapter" / SETTINGS, tmp_path / SETTINGS)
    weights.write_bytes(weights.read_bytes()[:-5])
    with pytest.raises(FormatError, match="altered"):
        Teacher.from_pretrained(tiny_lm, tmp_path / SETTINGS)
