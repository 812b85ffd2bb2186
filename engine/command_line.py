"""How a command line becomes options: recipes before the user's words, earlier spellings merged.

Nothing here imports torch.
"""

import argparse
import re
import shlex
import sys
from collections.abc import Callable, Container, Mapping
from typing import Any

from engine import adaptsegnet, processes, words
from engine.errors import UserError
from engine.recipes import RECIPES

# earlier spellings of words of --model: dest -> keyword of a network
MODEL_SPELLINGS = {
    "backbone": "encoder",
    **{key: key for key in ("multi_level", "aspp_dilations", "style", "norm", "width")},
    "output_stride": "output_stride",
}
# earlier spellings of words of --augment: dest -> (names that it replaces, its word)
AUGMENT_SPELLINGS: dict[str, tuple[tuple[str, ...], Callable[[Any], str | None]]] = {
    "crop_size": (("crop",), lambda size: "crop={},{}".format(*size)),
    "random_scale": (("scale",), lambda factors: "scale={:g},{:g}".format(*factors)),
    "random_mirror": (("hflip",), lambda mirrored: "hflip" if mirrored else None),
    "color_jitter": (("source:jitter",), lambda strength: f"source:jitter={strength:g}"),
    "auto_augment": (
        ("auto", "source:auto", "target:auto"),
        lambda side: "auto" if side == "both" else f"{side}:auto",
    ),
}


class Parser(argparse.ArgumentParser):
    """An ArgumentParser whose errors are one line, as every error of the project."""

    models: Mapping[str, Callable] | None = None  # what --model may name
    augmentations: Container[str] = ()  # what --augment may name

    def error(self, message: str):
        self.exit(2, f"error: {message} (see --help)\n")


class Help(argparse.RawDescriptionHelpFormatter):
    """Help that says what every flag is where it is left out."""

    def _get_help_string(self, action: argparse.Action) -> str:
        text = action.help or ""
        is_switch = action.nargs == 0 and action.default in (None, False, argparse.SUPPRESS)
        if is_switch or action.required or not action.option_strings or "default" in text:
            return text
        return f"{text}; default {_shown(action.default)}"


def _shown(value: Any) -> str:
    """Return a default for people."""
    if value is None or value is False or value == []:
        return "none"
    return ",".join(map(str, value)) if isinstance(value, (list, tuple)) else str(value)


class OnOff(argparse.Action):
    """A flag with an optional value, and its --no- form: the value, True without it, or False."""

    def __init__(self, option_strings: list[str], dest: str, **how):
        super().__init__(option_strings, dest, nargs="?", const=True, default=False, **how)

    def __call__(self, parser, namespace, values, option_string=None):
        """Store the value."""
        off = option_string.startswith("--no-")
        if off and values is not True:
            parser.error(f"{option_string} takes no value")
        setattr(namespace, self.dest, values if not off else False)


def parser(description: str) -> Parser:
    """Return an empty parser that prints the script's docstring as it stands."""
    return Parser(description=description, formatter_class=Help)


# ------------------------------------------------------------------ parsing


def parse(
    parser: Parser,
    argv: list[str] | None,
    default_recipe: str | None = None,
    spelled: Mapping[str, str] = {},
    evaluates: bool = False,
    unused: Callable[[list[str]], set[str]] = lambda _: set(),
) -> argparse.Namespace:
    """Parse the command line, the words of a recipe standing before the user's own.

    Flags of a recipe that the parser does not have are left out, and so are those that the user
    gave. The weights of a recipe's model are left out where another --model is given.

    Args:
        parser: of `parser`.
        argv: the words of the command line, None for the process's own.
        default_recipe: the recipe when none is named and no data is given.
        spelled: flag of a recipe -> this script's word for it.
        evaluates: whether the script stands for AdaptSegNet's that evaluate.
        unused: names of --method -> names of the options that none of them has, which are left out
            of a recipe.

    Returns:
        The options. `given` holds the names of those that the user gave; `free` of those that
        change no number; `defaults` their values where nothing is said; `model` is a dict of name
        and options, or None; `augment` has its words.

    Raises:
        UserError: a word of --model that does not exist.
    """
    argv = sys.argv[1:] if argv is None else argv
    argv, theirs = adaptsegnet.translate(argv, evaluates, parser._option_string_actions)
    given = _given(parser, argv)
    if default_recipe and (more := adaptsegnet.trained(given, theirs)):
        argv = [*argv, *more]
        given = _given(parser, argv)
    recipe = getattr(given, "recipe", None)
    if recipe is None and default_recipe and given.data_dir is None:
        recipe = default_recipe
    said = {key for key, value in vars(given).items() if value is not None}
    before = []
    if recipe is not None:
        before = _recipe_words(parser, recipe, given, spelled, unused)
        if processes.is_first():
            print(f"recipe {recipe}: {shlex.join(before)}", flush=True)
    args = parser.parse_args([*before, *argv])
    if recipe is not None:
        args.recipe = recipe
    if "model" in vars(args):
        args.model = _architecture(parser, args, _given(parser, before), given)
    if "augment" in vars(args):
        args.augment = _augmentations(parser, _given(parser, before), given)
    for spelling in {*MODEL_SPELLINGS, *AUGMENT_SPELLINGS} & vars(args).keys():
        delattr(args, spelling)
    args.given, args.free = frozenset(said), frozenset(_free(parser))
    args.defaults = {action.dest: action.default for action in parser._actions} | {"augment": []}
    return args


def _given(parser: Parser, argv: list[str]) -> argparse.Namespace:
    """Return the values that a command line states; None for what it leaves to the defaults."""
    required = [action for action in parser._actions if action.required]
    for action in required:
        action.required = False
    groups = [group for group in parser._mutually_exclusive_groups if group.required]
    for group in groups:
        group.required = False
    try:
        blank = argparse.Namespace(**{action.dest: None for action in parser._actions})
        return parser.parse_args(argv, blank)
    finally:
        for one in (*required, *groups):
            one.required = True


def _free(parser: Parser) -> set[str]:
    return {action.dest for action in parser._actions if getattr(action, "free", False)}


def _recipe_words(
    parser: Parser,
    recipe: str,
    given: argparse.Namespace,
    spelled: Mapping[str, str],
    unused: Callable[[list[str]], set[str]],
) -> list[str]:
    """Return the words of a recipe that this script has a flag for and the user gave no other."""
    groups: dict[str, list[str]] = {}  # by the name of the option
    for flag, *values in _by_flag(shlex.split(RECIPES[recipe])):
        flag = spelled.get(flag, flag)
        action = parser._option_string_actions.get(flag)
        if action is not None:
            repeatable = isinstance(action, argparse._AppendAction)
            before = groups.get(action.dest, []) if repeatable else []
            groups[action.dest] = [*before, flag, *values]
    if given.model is not None and given.model[0] != groups["model"][1]:
        groups = {dest: one for dest, one in groups.items() if dest not in ("model", "weights")}
    # the user's words of the same network stand beside the recipe's
    said = {dest for dest in groups if dest != "model" and getattr(given, dest) is not None}
    for exclusive in parser._mutually_exclusive_groups:
        dests = {action.dest for action in exclusive._group_actions}
        if any(getattr(given, dest) is not None for dest in dests):
            said |= dests
    if "method" in groups or "method" in vars(given):
        named = groups.get("method", ["--method", *(parser.get_default("method") or [])])[1:]
        said |= unused(given.method or named)
    kept = {dest: one for dest, one in groups.items() if dest not in said}
    return [word for one in kept.values() for word in one]


def _by_flag(recipe: list[str]) -> list[list[str]]:
    """Divide words before each flag."""
    groups: list[list[str]] = []
    for word in recipe:
        if word.startswith("--"):
            groups.append([])
        groups[-1].append(word)
    return groups


def _architecture(
    parser: Parser, args: argparse.Namespace, recipe: argparse.Namespace, given: argparse.Namespace
) -> dict[str, Any] | None:
    """Return the name and options of --model and its earlier spellings; None without a name."""
    spelled = {
        MODEL_SPELLINGS[dest]: value
        for dest in MODEL_SPELLINGS
        if (value := getattr(given, dest)) is not None
    }
    if args.model is None:
        if spelled:
            flag = next(dest for dest in MODEL_SPELLINGS if getattr(given, dest) is not None)
            raise UserError(
                f"--{flag.replace('_', '-')} goes with --model, for the weights of other projects"
            )
        return None
    listed = args.model if isinstance(args.model, list) else [args.model]
    name = listed[0]
    if name not in parser.models:
        raise UserError(f"--model {name}: there are: {', '.join(parser.models)}")
    pairs = {}
    for source in (recipe.model, given.model):
        if source is not None and source[0] == name:
            pairs |= dict(_pair("--model", word) for word in source[1:])
    options = words.bind(f"model {name}", parser.models[name], pairs.items())
    unknown = spelled.keys() - words.keywords(parser.models[name]).keys()
    if unknown:
        known = ", ".join(words.keywords(parser.models[name]))
        raise UserError(f"model {name} has no option {min(unknown)!r}; it has: {known}")
    return {"name": name, **options, **spelled}


def _pair(flag: str, word: str) -> tuple[str, str]:
    key, equals, value = word.partition("=")
    if not (key and equals and value):
        raise UserError(f"{flag} {word}: expected KEY=VALUE after the name")
    return key, value


def _augmentations(
    parser: Parser, recipe: argparse.Namespace, given: argparse.Namespace
) -> list[str]:
    """Return the words of --augment and of its earlier spellings, each name once, sorted.

    The keys of a word follow it in the same string.
    """
    listed = given.augment if given.augment is not None else recipe.augment or []
    named = {
        re.split("[= ]", group)[0]: group for group in words.grouped(listed, parser.augmentations)
    }
    for source in (recipe, given):
        for dest, (replaced, word_for) in AUGMENT_SPELLINGS.items():
            value = getattr(source, dest)
            if value is None:
                continue
            for name in replaced:
                named.pop(name, None)
            word = word_for(value)
            if word is not None:
                named[word.partition("=")[0]] = word
    return sorted(named.values())


def plain(args: argparse.Namespace) -> dict[str, Any]:
    """Return the options as plain values, to compare a run with the one it goes on from."""
    about = ("given", "free", "defaults")
    return {key: value for key, value in vars(args).items() if key not in about}


def refuse_idle(args: argparse.Namespace, dests: set[str], needed: str) -> None:
    """Refuse flags that would do nothing.

    Args:
        args: of `parse`.
        dests: names of the flags.
        needed: what makes them act.

    Raises:
        UserError: names the first that was given.
    """
    for dest in sorted(args.given & dests):
        raise UserError(f"--{dest.replace('_', '-')} goes with {needed}")
