"""The section `Arch` of a distillation: what it means, and what it may not say."""

import copy

import pytest

from ppcls.arch.distillation import split_section
from ppcls.engine.config import Recipe
from ppcls.utils.errors import ConfigError

SECTION = {
    "name": "DistillationModel",
    "class_num": 10,
    "freeze_params_list": [True, False],
    "infer_model_name": "Student",
    "models": [
        {"Teacher": {"name": "HarDNet85", "pretrained": "teacher.pdparams"}},
        {"Student": {"name": "HarDNet68_ds", "dropout": 0.1}},
    ],
}


def changed(**values):
    return {k: v for k, v in {**copy.deepcopy(SECTION), **values}.items() if v != "absent"}


def models(teacher=None, student=None):
    entries = copy.deepcopy(SECTION["models"])
    entries[0]["Teacher"] |= teacher or {}
    entries[1]["Student"] |= student or {}
    return {"models": entries}


def test_a_section_is_split_and_joined_again():
    found, student = split_section(SECTION)
    assert (found.student, found.teacher) == ("Student", "Teacher")
    assert student == {"name": "HarDNet68_ds", "dropout": 0.1, "class_num": 10}
    teacher = {"name": "HarDNet85", "pretrained": "teacher.pdparams", "class_num": 10}
    assert found.network == teacher
    whole = found.joined(student)
    assert whole["freeze_params_list"] == [True, False]
    assert split_section(whole) == (found, student)


def test_the_frozen_one_is_the_teacher_whatever_its_place_and_name():
    section = changed(
        models=[{"small": {"name": "HarDNet39_ds"}}, {"large": {"name": "HarDNet68"}}],
        freeze_params_list=[False, True],
        infer_model_name=None,
    )
    found, student = split_section(section)
    assert (found.student, found.teacher) == ("small", "large")
    assert student["name"] == "HarDNet39_ds" and found.where == "Arch.models[1].large"
    assert split_section(found.joined(student)) == (found, student)


def test_pretrained_list_is_each_model_s_own():
    section = changed(pretrained_list=["a.pdparams", None], **models({"pretrained": False}))
    found, student = split_section(section)
    assert found.network["pretrained"] == "a.pdparams" and "pretrained" not in student


def test_a_recipe_is_about_the_student():
    sections = {"Arch": SECTION, "Global": {"epochs": 1}}
    recipe = Recipe.parse(sections, "a.yaml")
    assert recipe.Arch["name"] == "HarDNet68_ds" and recipe.class_num == 10
    assert recipe.arch_name == "DistillationModel"
    mapping = recipe.to_mapping()
    assert "distillation" not in mapping and mapping["Arch"]["name"] == "DistillationModel"
    assert Recipe.parse(mapping, "a.yaml") == recipe


@pytest.mark.parametrize(
    ("section", "message"),
    [
        (
            changed(freeze_params_list=[True, True]),
            r"freeze_params_list: expected True for the teacher and False for the student of "
            r"\['Teacher', 'Student'\], got \[True, True\]",
        ),
        (changed(freeze_params_list=[False, False]), r"got \[False, False\]"),
        (changed(freeze_params_list="absent"), "freeze_params_list: expected True for .* got None"),
        (changed(freeze_params_list=[True]), r"got \[True\]"),
        (changed(infer_model_name="Teacher"), "infer_model_name: expected 'Student', the model th"),
        (changed(infer_model_name="Pupil"), "infer_model_name: expected 'Student'.* got 'Pupil'"),
        (changed(models="absent"), "missing key 'models'"),
        (changed(models=[{"Student": {"name": "x"}}]), "models: expected a teacher and a student"),
        (changed(models=[SECTION["models"][0]] * 2), r"got \['Teacher', 'Teacher'\]"),
        (changed(models=[{"a": {}, "b": {}}]), r"models\[0\]: expected one model, .*\['a', 'b'\]"),
        (changed(models=["HarDNet68"]), r"models\[0\]: expected a mapping"),
        (
            changed(**models({"name": 3})),
            r"models\[0\]\.Teacher\.name: expected an architecture, g",
        ),
        (changed(model=[]), "unknown key 'model'; did you mean 'models'"),
        (
            changed(**models({"class_num": 1000})),
            r"models\[0\]\.Teacher\.class_num: expected 10, as Student has, got 1000",
        ),
        (changed(class_num="absent", **models({}, {"class_num": 10})), "expected 10, as .* 1000"),
        (changed(**models({}, {"class_num": 3})), "class_num: expected 3, as Student has, or none"),
        (
            changed(pretrained_list=["a", None]),
            r"models\[0\]\.Teacher\.pretrained: expected none beside Arch.pretrained_list, got 't",
        ),
        (changed(pretrained_list=["a"]), "pretrained_list: expected an entry for each of"),
    ],
)
def test_mistakes(section, message):
    with pytest.raises(ConfigError, match=r"^Arch.*" + message):
        split_section(section)


def test_a_detector_is_no_student():
    sections = {"Arch": SECTION, "Global": {"task": "detection"}}
    with pytest.raises(ConfigError, match=r"^Global\.task: expected classification with Arch\.nam"):
        Recipe.parse(sections, "a.yaml")
