"""Which checkpoint a run begins with, and what its recipe must share with that run."""

import dataclasses
import logging
from pathlib import Path

import pytest
from detection_folders import COCO_IMAGES, EVAL_OPS, write_coco
from tiny_run import TinyImages, eval_loader, tiny_net, trainer

from ppcls.data.loader import build_train_loader
from ppcls.engine import resume
from ppcls.engine.checkpoint import Checkpoint, Progress
from ppcls.engine.checkpoint_store import SavedSet
from ppcls.engine.config import Recipe
from ppcls.utils.errors import ConfigError, JobError, UserError

SECTIONS = {
    "Global": {"epochs": 5, "seed": 3},
    "Arch": {"name": "HarDNet68", "class_num": 10},
    "Optimizer": {"name": "Momentum", "lr": {"name": "Cosine", "learning_rate": 0.1}},
    "DataLoader": {
        "Train": {
            "dataset": {"name": "ImageNetDataset", "image_root": "a", "transform_ops": [{"X": 1}]},
            "sampler": {"batch_size": 32},
        }
    },
}


def recipe(**changes):
    """The recipe above with values at dotted paths changed."""
    mapping = Recipe.parse(SECTIONS, "recipe.yaml").to_mapping()
    for path, value in changes.items():
        node = mapping
        *parents, last = path.split("__")
        for key in parents:
            node = node.setdefault(key, {})
        node[last] = value
    return Recipe.parse(mapping, "recipe.yaml")


def checkpoint(tmp_path, **data):
    states = {"recipe": recipe().to_mapping(), "data": data}
    return Checkpoint(SavedSet(tmp_path / "latest"), states, Progress())


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"Global__epochs": 6},
        {"Global__output_dir": "elsewhere", "Global__device": "cpu"},
        {"Global__print_batch_step": 1, "Global__save_interval_steps": 5, "Global__keep_last": 9},
        {"Global__auto_resume": True, "Global__checkpoints": "x", "Global__max_steps": 3},
        {"Arch__pretrained": True},
        {"DataLoader__Train__loader": {"num_workers": 0}},
        {"DataLoader__Train__dataset__image_root": "b"},
        {"Infer": {"batch_size": 3}, "Metric": {"Eval": [{"TopkAcc": {}}]}},
        {"Global__results_dir": "found"},
    ],
)
def test_what_may_change(tmp_path, changes):
    resume.check_same_recipe(checkpoint(tmp_path), recipe(**changes))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"Global__epochs": 4}, "Global.epochs was 5, is 4"),
        ({"Global__seed": 4}, "Global.seed was 3, is 4"),
        ({"Global__update_freq": 2}, "Global.update_freq was 1, is 2"),
        ({"Arch__name": "HarDNet85"}, "Arch.name was 'HarDNet68', is 'HarDNet85'"),
        ({"Arch__dropout": 0.2}, "Arch.dropout was absent, is 0.2"),
        ({"Optimizer__lr__learning_rate": 0.2}, "Optimizer.lr.learning_rate was 0.1, is 0.2"),
        (
            {"DataLoader__Train__dataset__transform_ops": [{"X": 2}]},
            "DataLoader.Train.dataset.transform_ops.0.X was 1, is 2",
        ),
        (
            {"Global__seed": 9, "Arch__class_num": 3},
            "Global.seed was 3, is 9; Arch.class_num was 10, is 3",
        ),
    ],
)
def test_what_may_not(tmp_path, changes, message):
    with pytest.raises(ConfigError) as caught:
        resume.check_same_recipe(checkpoint(tmp_path), recipe(**changes))
    text = str(caught.value)
    assert text.startswith("recipe.yaml: expected the recipe of the run to go on with")
    assert f"latest, but {message} (to start anew from its weights: " in text


@pytest.mark.parametrize(
    ("world_size", "batch_size", "expected"),
    [(1, 32, 32), (2, 32, 32), (3, 32, 32), (2, 16, 32), (4, 8, 32), (2, 12, None), (1, 64, None)],
)
def test_the_global_batch_stays(tmp_path, monkeypatch, world_size, batch_size, expected, caplog):
    """Unchanged, the recipe's batch is shared out anew; changed, it must give the same in all."""
    caplog.set_level(logging.INFO, "ppcls")
    monkeypatch.setattr(resume.distributed, "world_size", lambda: world_size)
    wanted = recipe(DataLoader__Train__sampler={"batch_size": batch_size})
    saved = checkpoint(tmp_path, global_batch=32)
    if expected is None:
        with pytest.raises(ConfigError, match="batch_size: expected 32 images per step over all"):
            resume.global_batch_size(wanted, saved)
    else:
        assert resume.global_batch_size(wanted, saved) == expected
        assert ("share the 32 images" in caplog.text) == (world_size * batch_size != 32)


def test_a_new_run_multiplies(monkeypatch):
    monkeypatch.setattr(resume.distributed, "world_size", lambda: 4)
    assert resume.global_batch_size(recipe(), None) == 128


def test_the_training_set_stays_the_same():
    """Its files may move; other names or labels are another set."""
    loader = eval_loader(TinyImages(7))
    loader.sampler.global_batch_size = 4
    facts = resume.data_facts(loader)
    resume.check_same_data(checkpoint(Path("x"), **facts), facts)
    with pytest.raises(ConfigError, match="expected the 8 samples of the run to go on with"):
        resume.check_same_data(checkpoint(Path("x"), samples=8), facts)
    loader.dataset.labels[3] += 1
    with pytest.raises(ConfigError, match=r"expected the samples \(SHA-256 .*found"):
        resume.check_same_data(checkpoint(Path("x"), **facts), resume.data_facts(loader))


def test_the_boxes_stay_the_same(tmp_path):
    def facts(images=COCO_IMAGES):
        arguments = write_coco(tmp_path, images)
        dataset = {"name": "COCODataset", **arguments, "transform_ops": EVAL_OPS}
        loader = build_train_loader({"dataset": dataset, "sampler": {"batch_size": 2}}, "D.Train")
        return resume.data_facts(loader)

    known = facts()
    resume.check_same_data(checkpoint(Path("x"), **known), facts())
    size, boxes = COCO_IMAGES[5]
    for changed in (
        boxes[:1],  # one less
        [(2, [4, 3, 20, 14], 0), boxes[1]],  # a side
        [(7, *boxes[0][1:]), boxes[1]],  # a class
        [boxes[0], (*boxes[1][:2], 0)],  # a crowd
    ):
        with pytest.raises(ConfigError, match=r"expected the boxes and classes \(SHA-256 .*found"):
            resume.check_same_data(
                checkpoint(Path("x"), **known), facts({**COCO_IMAGES, 5: (size, changed)})
            )
    # Runs from before boxes were written down go on.
    resume.check_same_data(checkpoint(Path("x"), samples=4, digest=known["digest"]), facts())


@pytest.mark.parametrize("place", [Progress(cut_short=True), Progress(step=3)])
def test_a_limit_that_cut_an_epoch_or_update_short_stays(tmp_path, place):
    saved = checkpoint(tmp_path)
    saved.states["recipe"]["Global"] |= {"update_freq": 2, "max_steps": 6}
    saved = dataclasses.replace(saved, progress=place)
    same = {"Global__update_freq": 2, "Global__max_steps": 6}
    resume.check_same_recipe(saved, recipe(**same))
    with pytest.raises(ConfigError, match="Global.max_steps was 6, is absent, where it had cut"):
        resume.check_same_recipe(saved, recipe(Global__update_freq=2))


def test_numbers_may_be_written_as_text(tmp_path):
    saved = checkpoint(tmp_path)
    resume.check_same_recipe(saved, recipe(Optimizer__lr__learning_rate="1e-1"))


@pytest.fixture
def finished(tmp_path):
    """A folder with sets of a run whose recipe is the one above."""
    run = trainer(tmp_path / "run", tiny_net(), eval_during_train=False)
    run.checkpointer.recipe = recipe().to_mapping()
    run.fit()
    return tmp_path / "run"


def test_own_folder_first(finished, tmp_path):
    found = resume.find_checkpoint(recipe(Global__auto_resume=True), finished)
    assert found.files.stem.parent == finished / "sets" and found.progress.epoch == 2
    given = str(finished / "epoch_1")
    both = recipe(Global__auto_resume=True, Global__checkpoints=given)
    assert resume.find_checkpoint(both, finished).progress.epoch == 2
    assert resume.find_checkpoint(both, tmp_path / "none").progress.epoch == 1
    assert resume.find_checkpoint(recipe(Global__checkpoints=given), finished).progress.epoch == 1
    assert resume.find_checkpoint(recipe(), finished) is None
    assert resume.find_checkpoint(recipe(Global__auto_resume=True), tmp_path / "none") is None


def test_damaged_sets_never_start_a_run_anew(finished):
    for path in (finished / "sets").glob("*.pdopt"):
        path.write_bytes(b"")
    with pytest.raises(UserError, match="expected an undamaged checkpoint, found none"):
        resume.find_checkpoint(recipe(Global__auto_resume=True), finished)


def test_ranks_must_see_the_same_checkpoint(finished, monkeypatch):
    monkeypatch.setattr(resume.parallel, "gather_bytes", lambda own: [own, b"none"])
    with pytest.raises(JobError, match="all ranks to find the same checkpoint, found 2 .*, none"):
        resume.find_checkpoint(recipe(Global__auto_resume=True), finished)


def test_weights_come_from_the_checkpoint_alone():
    one = recipe(Arch__pretrained=True, Global__pretrained_model="x.pdparams")
    other = resume.without_pretrained(one)
    assert other.Global.pretrained_model is None and "pretrained" not in other.Arch
    assert dataclasses.replace(other.Global, pretrained_model="x.pdparams") == one.Global
