"""The section `Arch` of a distillation: a student, and the teacher it learns from.

    Arch:
      name: DistillationModel
      class_num: 1000
      freeze_params_list: [True, False]
      infer_model_name: Student
      models:
        - Teacher: {name: HarDNet85, pretrained: True}
        - Student: {name: HarDNet68_ds}

The form is PaddleClas 2.6's. Here there are two models, one of them frozen; and `class_num` holds
for a model that does not say its own, where PaddleClas does not look at it.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ppcls.utils import schema
from ppcls.utils.errors import ConfigError

DISTILLATION_MODEL = "DistillationModel"
_DEFAULT_CLASSES = 1000  # of every network of this project and of PaddleClas's zoo

Section = dict[str, Any]


@dataclass(frozen=True, kw_only=True)
class Distillation:
    """Who teaches whom. The student's own section is the recipe's `Arch`.

    student, teacher: their names in `models`.
    network: the teacher's section: an architecture's `name`, `pretrained` and its arguments.
    place: the teacher's in `models`.
    """

    student: str
    teacher: str
    network: Section
    place: int

    @property
    def where(self) -> str:
        """What errors call the teacher's section."""
        return f"Arch.models[{self.place}].{self.teacher}"

    @property
    def student_where(self) -> str:
        """What errors call the student's section."""
        return f"Arch.models[{1 - self.place}].{self.student}"

    def with_classes(self, class_num: int) -> Distillation:
        """Return the same with a teacher of so many classes."""
        return dataclasses.replace(self, network={**self.network, "class_num": class_num})

    def joined(self, student: Section) -> Section:
        """Return the whole section again, with `student` as the student's."""
        entries = [(self.student, dict(student))]
        entries.insert(self.place, (self.teacher, dict(self.network)))
        return {
            "name": DISTILLATION_MODEL,
            "freeze_params_list": [name == self.teacher for name, _ in entries],
            "infer_model_name": self.student,
            "models": [{name: section} for name, section in entries],
        }


@dataclass(frozen=True, kw_only=True)
class _Written:
    """The section as it is written."""

    name: str
    models: list[dict[str, dict[str, Any]]]
    freeze_params_list: list[bool] | None = None
    pretrained_list: list[bool | str | None] | None = None
    infer_model_name: str | None = None
    class_num: int | None = None


def split_section(section: Mapping[str, Any]) -> tuple[Distillation, Section]:
    """Part a section DistillationModel: the distillation, and the student's own section.

    Raises ConfigError unless exactly one of two models is frozen and both know the same classes.
    """
    written = schema.parse_dataclass(_Written, section, "Arch")
    names = _names(written)
    sections = [dict(next(iter(entry.values()))) for entry in written.models]
    for own, where in zip(sections, _places(names), strict=True):
        if not isinstance(own.get("name"), str):
            raise ConfigError(f"{where}.name: expected an architecture, got {own.get('name')!r}")
        if written.class_num is not None:
            own.setdefault("class_num", written.class_num)
    _spread_pretrained(written.pretrained_list, names, sections)
    place = _place_of_teacher(written.freeze_params_list, names)
    student = names[1 - place]
    if written.infer_model_name not in (None, student):
        raise ConfigError(
            f"Arch.infer_model_name: expected {student!r}, the model that trains, "
            f"got {written.infer_model_name!r}"
        )
    found = Distillation(
        student=student, teacher=names[place], network=sections[place], place=place
    )
    _check_classes(found, sections[1 - place], written.class_num)
    return found, sections[1 - place]


def _names(written: _Written) -> list[str]:
    for i, entry in enumerate(written.models):
        if len(entry) != 1:
            raise ConfigError(
                f"Arch.models[{i}]: expected one model, 'NAME: {{name: ...}}', got {list(entry)}"
            )
    names = [name for entry in written.models for name in entry]
    if len(names) != 2 or names[0] == names[1]:
        raise ConfigError(f"Arch.models: expected a teacher and a student, got {names}")
    return names


def _places(names: list[str]) -> list[str]:
    return [f"Arch.models[{i}].{name}" for i, name in enumerate(names)]


def _place_of_teacher(frozen: list[bool] | None, names: list[str]) -> int:
    if frozen is None or sorted(frozen) != [False, True]:
        raise ConfigError(
            f"Arch.freeze_params_list: expected True for the teacher and False for the student of "
            f"{names}, got {frozen}"
        )
    return frozen.index(True)


def _spread_pretrained(weights: list | None, names: list[str], sections: list[Section]) -> None:
    """Put `pretrained_list` where each model's own `pretrained` is."""
    if weights is None:
        return
    if len(weights) != len(names):
        raise ConfigError(
            f"Arch.pretrained_list: expected an entry for each of {names}, got {weights}"
        )
    for value, own, where in zip(weights, sections, _places(names), strict=True):
        if value is None:
            continue
        if own.get("pretrained"):
            raise ConfigError(
                f"{where}.pretrained: expected none beside Arch.pretrained_list, "
                f"got {own['pretrained']!r}"
            )
        own["pretrained"] = value


def _check_classes(found: Distillation, student: Section, outer: int | None) -> None:
    """Whatever a section leaves out, the student, the teacher and `Arch.class_num` agree."""
    own = _classes(student, found.student_where)
    other = _classes(found.network, found.where)
    if outer is not None and own != outer:
        raise ConfigError(
            f"Arch.class_num: expected {own}, as {found.student} has, or none, got {outer}"
        )
    if own != other:
        raise ConfigError(
            f"{found.where}.class_num: expected {own}, as {found.student} has, got {other}"
        )


def _classes(section: Section, where: str) -> int:
    return schema.coerce(section.get("class_num", _DEFAULT_CLASSES), int, f"{where}.class_num")
