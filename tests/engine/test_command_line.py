"""Recipes and words: what stands before the user's own, what wins, and what is refused."""

import argparse
import shlex

import pytest

import evaluate
import train_da
import train_seg
from engine import command_line, options, words
from engine.errors import UserError
from engine.recipes import RECIPES
from methods import METHODS

NEEDED = ["--snapshot-dir", "s", "--data-dir", "d"]


def values(args: argparse.Namespace) -> dict:
    return {key: value for key, value in vars(args).items() if key not in ("given", "recipe")}


@pytest.mark.parametrize("name", sorted(RECIPES))
def test_a_recipe_holds_only_words_that_exist(name: str):
    """An unknown flag, network, option, loss, augmentation or method is an error of ours."""
    train_da.parse_args([*shlex.split(RECIPES[name]), *NEEDED, "--method", *METHODS])
    spelled = {*command_line.MODEL_SPELLINGS, *command_line.AUGMENT_SPELLINGS}
    flags = {word[2:].replace("-", "_") for word in shlex.split(RECIPES[name]) if word[:2] == "--"}
    assert not flags & spelled, "a recipe is written in words, not in their earlier spellings"


@pytest.mark.parametrize("name", sorted(RECIPES))
def test_a_recipe_is_its_words_typed(name: str, capsys):
    args = train_da.parse_args(["--recipe", name, *NEEDED])
    printed = capsys.readouterr().out
    assert printed.startswith(f"recipe {name}: --source")
    typed = train_da.parse_args([*shlex.split(printed.partition(": ")[2]), *NEEDED])
    assert values(typed) == values(args)


@pytest.mark.parametrize("name", sorted(RECIPES))
def test_the_supervised_script_takes_what_it_has_flags_for(name: str):
    adapted = train_da.parse_args(["--recipe", name, *NEEDED])
    alone = train_seg.parse_args(["--recipe", name, "--snapshot-dir", "s"])
    assert alone.dataset == adapted.target
    for key in ("model", "augment", "num_steps", "batch_size", "learning_rate", "weights", "set"):
        assert getattr(alone, key) == getattr(adapted, key), key


def test_a_printed_recipe_and_the_users_words_are_the_same_run(capsys):
    own = ["--set", "day_train", "--no-random-mirror", "--width", "32", *NEEDED]
    args = train_da.parse_args(["--recipe", "camvid", *own])
    printed = shlex.split(capsys.readouterr().out.partition(": ")[2])
    assert "dusk_train" not in printed
    assert values(train_da.parse_args([*printed, *own])) == values(args)
    assert args.augment == ["crop=256,192"]
    assert args.model["width"] == 32


def test_another_model_leaves_the_recipes_model_and_its_weights():
    args = train_da.parse_args(["--recipe", "camvid", *NEEDED, "--model", "compact"])
    assert (args.model, args.weights, args.batch_size) == ({"name": "compact"}, "none", 4)
    same = train_da.parse_args(["--recipe", "camvid", *NEEDED, "--model", "deeplabv3plus"])
    assert same.model == {"name": "deeplabv3plus", "encoder": "efficientnet_lite0"}
    assert same.weights == "imagenet"


def test_what_is_given_wins_over_the_recipe():
    words = "--recipe camvid --snapshot-dir s --num-steps 7 --source gta5 --method mix".split()
    args = train_da.parse_args(words)
    assert (args.num_steps, args.source, args.method) == (7, ["gta5"], ["mix"])
    assert args.given >= {"num_steps", "source", "method", "recipe"}
    assert "batch_size" not in args.given
    assert (args.lambda_mix, args.lambda_entropy) == (1.0, 0.001)  # the recipe's is of entropy


def test_without_data_flags_the_streets_are_adapted():
    assert train_da.parse_args(["--snapshot-dir", "s"]).source == ["streets"]
    assert train_da.parse_args(NEEDED).recipe is None


# ------------------------------------------------------------------ words and earlier spellings


@pytest.mark.parametrize(
    ("spelled", "words"),
    [
        ("--backbone resnet18 --width 64", "--model deeplabv3plus encoder=resnet18 width=64"),
        ("--multi-level", "--model deeplabv3plus multi_level=yes"),
        ("--output-stride 8 --norm batch", "--model deeplabv3plus norm=batch output_stride=8"),
        ("--random-mirror --crop-size 64,32", "--augment hflip crop=64,32"),
        ("--random-scale", "--augment scale=0.5,1.5"),
        ("--color-jitter 0.4 --auto-augment", "--augment source:jitter=0.4 auto"),
        ("--auto-augment target", "--augment target:auto"),
        ("--augment hflip scale=0.5,2 --no-random-mirror", "--augment scale=0.5,2"),
    ],
)
def test_earlier_flags_are_spellings_of_words(spelled: str, words: str):
    model = ["--model", "deeplabv3plus"]
    first = train_da.parse_args([*NEEDED, *model, *spelled.split()])
    second = train_da.parse_args([*NEEDED, *model, *words.split()])
    assert first.model == second.model
    assert first.augment == second.augment


def test_the_users_augmentation_replaces_the_recipes_and_spellings_change_it():
    words = ["--recipe", "camvid", *NEEDED]
    assert train_da.parse_args(words).augment == ["crop=256,192", "hflip"]
    more = train_da.parse_args([*words, "--crop-size", "64,48", "--color-jitter", "0.1"])
    assert more.augment == ["crop=64,48", "hflip", "source:jitter=0.1"]
    assert train_da.parse_args([*words, "--augment", "scale"]).augment == ["scale"]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("--model vnet", "--model vnet: there are: "),
        ("--model compact widht=3", "model compact has no option 'widht'; it has: width, norm"),
        ("--model compact width=many", "model compact: width=many: expected int >= 1"),
        ("--model compact norm=layer", "norm=layer: must be one of group, batch"),
        ("--model compact width", "--model width: expected KEY=VALUE after the name"),
        ("--model compact --multi-level", "model compact has no option 'multi_level'"),
    ],
)
def test_words_of_a_model_that_do_not_exist(words: str, message: str):
    with pytest.raises(UserError) as error:
        train_da.parse_args([*NEEDED, *words.split()])
    assert message in str(error.value)


def test_options_of_a_network_need_its_name():
    with pytest.raises(UserError, match="--norm goes with --model"):
        evaluate.parse_args(["--restore-from", "x.pth", "--norm", "batch"])


def test_flags_that_change_no_number_are_marked_where_they_are_declared():
    free = train_da.parse_args(["--snapshot-dir", "s"]).free
    assert free == {
        *("snapshot_dir", "device", "num_workers", "loader_timeout", "cache", "print_every"),
        *("save_every_minutes", "keep_last", "tensorboard", "checkpoint_activations", "recipe"),
        *("save_pred_every", "num_steps_stop", "data_dir", "data_dir_target", "baseline"),
        *("change_num_steps", "allow_missing_classes", "save_format", "wandb"),
    }
    assert not free & options.plain(train_da.parse_args(["--snapshot-dir", "s"])).keys() - free


# ------------------------------------------------------------------ flags that would do nothing


def idle_weights() -> list[tuple[str, str]]:
    """Return every flag of a method, with a method that has it not."""
    owners: dict[str, set[str]] = {}
    for name, method in METHODS.items():
        for key in words.keywords(method):
            owners.setdefault(key, set()).add(name)
    return [(key, next(n for n in METHODS if n not in those)) for key, those in owners.items()]


@pytest.mark.parametrize(("key", "method"), idle_weights())
def test_an_option_of_no_chosen_method_is_refused(key: str, method: str):
    keyword = words.keywords(next(m for m in METHODS.values() if key in words.keywords(m)))[key]
    value = keyword.choices[0] if keyword.choices else str(keyword.default)
    flag = f"--{key.replace('_', '-')}"
    given = ["--snapshot-dir", "s", "--recipe", "streets", flag, value]
    for names in (method, "none"):
        with pytest.raises(UserError, match=f"{flag} goes with --method .*, not with {names}"):
            train_da.parse_args([*given, "--method", names])
    owner = next(name for name in METHODS if key in words.keywords(METHODS[name]))
    train_da.parse_args([*given, "--method", method, owner])


@pytest.mark.parametrize(
    ("flags", "needed"),
    [
        ("--optimizer adamw --momentum 0.8", "--momentum goes with --optimizer sgd"),
        ("--num-workers 0 --loader-timeout 9", "--loader-timeout goes with --num-workers of 1"),
        ("--val-on none --val-set day_val", "--val-set goes with --val-on target or source"),
    ],
)
def test_other_idle_flags_are_refused(flags: str, needed: str):
    with pytest.raises(UserError, match=needed):
        train_da.parse_args(["--snapshot-dir", "s", "--recipe", "camvid", *flags.split()])
