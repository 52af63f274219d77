"""Options, exit codes, the one line of an error, and `--json`."""

import json
import logging

import pytest

from ppcls.utils import cli
from ppcls.utils import logger as log
from ppcls.utils.errors import ConfigError, JobError, UserError


@pytest.fixture
def parser():
    return cli.make_parser("Do something.", "python tools/x.py -c a.yaml")


def run(parser, command, *argv):
    return cli.run(parser, command, ["-c", "a.yaml", *argv])


def raising(error):
    def command(args):
        raise error

    return command


def test_overrides_repeat_and_follow_one_o(parser):
    args = parser.parse_args(["-c", "a.yaml", "-o", "A.b=1", "C.d=2", "-o", "E.f=3"])
    assert args.override == ["A.b=1", "C.d=2", "E.f=3"]
    assert parser.parse_args(["-c", "a.yaml"]).override == []


def test_overrides_of_one_run_do_not_reach_the_next(parser):
    parser.parse_args(["-c", "a.yaml", "-o", "A.b=1"])
    assert parser.parse_args(["-c", "a.yaml", "-o", "C.d=2"]).override == ["C.d=2"]


@pytest.mark.parametrize(
    ("argv", "match"),
    [
        ([], "-c/--config"),
        (["-c"], "expected one argument"),
        (["-c", "a.yaml", "-o"], "expected at least one argument"),
        (["-c", "a.yaml", "--jso", "x"], "unrecognized arguments: --jso"),
        (["-c", "a.yaml", "more"], "unrecognized arguments: more"),
    ],
)
def test_wrong_options_are_one_line_and_exit_2(parser, capsys, argv, match):
    with pytest.raises(SystemExit) as exit_:
        cli.run(parser, lambda args: None, argv)
    assert exit_.value.code == 2
    err = capsys.readouterr().err
    assert err.startswith("error: ") and err.count("\n") == 1 and match in err


def test_help_shows_the_example(parser, capsys):
    with pytest.raises(SystemExit) as exit_:
        cli.run(parser, lambda args: None, ["-h"])
    assert exit_.value.code == 0
    assert "example:\n  python tools/x.py -c a.yaml\n" in capsys.readouterr().out


def test_a_parser_without_a_recipe():
    parser = cli.make_parser("Do something.", "python x.py", config=False)
    assert vars(parser.parse_args([])) == {"json": None, "debug": False}


def test_success(parser, capsys):
    assert run(parser, lambda args: None) == 0
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize(
    ("error", "code"),
    [(UserError("a: b"), 2), (ConfigError("a:\n  b"), 2), (JobError("a:   b"), 1)],
)
def test_an_error_is_one_line(parser, capsys, error, code):
    assert run(parser, raising(error)) == code
    assert capsys.readouterr().err == "error: a: b\n"


def test_debug_shows_the_traceback(parser, capsys):
    assert run(parser, raising(UserError("a")), "--debug") == 2
    err = capsys.readouterr().err
    assert "Traceback" in err and err.endswith("error: a\n")


def test_a_bug_keeps_its_traceback(parser):
    with pytest.raises(ZeroDivisionError):
        run(parser, raising(ZeroDivisionError()))


def test_interrupted(parser, capsys):
    assert run(parser, raising(KeyboardInterrupt())) == 130
    assert capsys.readouterr().err == "interrupted\n"


def test_json(parser, tmp_path):
    result = {"top1": 1 / 3, "name": "é", "none": None}
    assert run(parser, lambda args: result, "--json", str(tmp_path / "r.json")) == 0
    text = (tmp_path / "r.json").read_text(encoding="utf-8")
    assert json.loads(text) == result and "é" in text and text.endswith("}\n")


def test_an_error_leaves_the_old_json_alone(parser, tmp_path):
    path = tmp_path / "r.json"
    path.write_text("old")
    assert run(parser, raising(UserError("a")), "--json", str(path)) == 2
    assert path.read_text() == "old" and list(tmp_path.iterdir()) == [path]


def test_a_json_file_that_cannot_be_written_is_the_user_s_mistake(parser, tmp_path, capsys):
    (tmp_path / "file").write_text("")
    path = tmp_path / "file" / "r.json"
    assert run(parser, lambda args: {"a": 1}, "--json", str(path)) == 2
    err = capsys.readouterr().err
    assert err.startswith("error: ") and err.count("\n") == 1 and str(path) in err


# ---------------------------------------------------------------- the log


@pytest.fixture
def logger():
    """The project's logger as a fresh process finds it; put back afterwards."""
    logger = logging.getLogger("ppcls")
    before = logger.handlers[:], logger.level, logger.propagate
    logger.handlers[:] = []
    yield logger
    logger.handlers[:], logger.propagate = before[0], before[2]
    logger.setLevel(before[1])


def test_log_is_said_once_however_often_it_is_set_up(logger, capsys):
    for _ in range(2):
        log.setup()
    logger.info("hello")
    out = capsys.readouterr().out
    assert out.count("hello") == 1 and out.endswith(" ppcls INFO: hello\n")


def test_other_ranks_only_warn(logger, capsys):
    log.setup(rank=1)
    logger.info("hello")
    logger.warning("careful")
    out = capsys.readouterr().out
    assert "hello" not in out and "careful" in out


def test_log_file(logger, tmp_path):
    log.setup()
    for word in ("one", "two"):
        handler = log.add_file(tmp_path / "train.log")
        logger.info(word)
        logger.removeHandler(handler)
        handler.close()
    logger.info("three")
    lines = (tmp_path / "train.log").read_text().splitlines()
    assert [line.rsplit(" ", 1)[1] for line in lines] == ["one", "two"]
