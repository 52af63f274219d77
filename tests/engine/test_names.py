"""Names of classes: label files, and the names that go with a run's recipe."""

import pytest

from ppcls.data.datasets import ClassificationDataset, DetectionDataset
from ppcls.engine.config import Recipe
from ppcls.engine.names import _packaged, class_names, read_class_names, with_names_of
from ppcls.utils.errors import DataError


def test_label_files_may_begin_with_a_byte_order_mark(tmp_path):
    path = tmp_path / "names.txt"
    path.write_text("0 zero\n1 one, two\n", encoding="utf-8-sig")
    assert read_class_names(path) == {0: "zero", 1: "one, two"}


@pytest.mark.parametrize("line", ["zero", "0", "² two", "-1 minus"])
def test_a_malformed_label_is_named_with_its_line(tmp_path, line):
    path = tmp_path / "names.txt"
    path.write_text(f"0 zero\n{line}\n")
    with pytest.raises(DataError, match=r"names\.txt:2: expected 'id name'"):
        read_class_names(path)


def test_the_names_of_imagenet_are_found_from_any_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    names = read_class_names(_packaged("ppcls/utils/imagenet1k_label_list.txt"))
    assert len(names) == 1000 and names[0].startswith("tench")


def named(kind, names):
    dataset = kind.__new__(kind)
    dataset.class_names = names
    return dataset


def recipe(**post):
    sections = {"Arch": {"name": "HarDNet39_ds", "class_num": 3}, "Infer": {"PostProcess": post}}
    return Recipe.parse(sections, "r.yaml")


def test_a_run_s_recipe_has_the_names_of_its_images():
    """Of folders, shards and CIFAR alike; a class more than there are names has its number."""
    found = with_names_of(recipe(), named(ClassificationDataset, ["cat", "dog"]))
    assert class_names(found.Infer.PostProcess, 3) == {0: "cat", 1: "dog", 2: "2"}
    assert Recipe.parse(found.to_mapping(), "r.yaml").to_mapping() == found.to_mapping()


def test_names_of_the_recipe_stay():
    dataset = named(ClassificationDataset, ["n1", "n2", "n3"])
    for post in ({"class_names": ["a", "b", "c"]}, {"class_id_map_file": "names.txt"}):
        own = recipe(**post)
        assert with_names_of(own, dataset) is own


@pytest.mark.parametrize("kind", [ClassificationDataset, DetectionDataset])
def test_nothing_is_named_without_names_or_by_a_detector(kind):
    own = recipe()
    names = None if kind is ClassificationDataset else ["background", "cat", "dog"]
    assert with_names_of(own, named(kind, names)) is own
