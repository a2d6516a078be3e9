"""Parameters of a step: fixed, or drawn from a range or a list."""

from typing import Any

from pydantic import PlainValidator

Amount = float | tuple[float, float] | dict[str, tuple[Any, ...]]  # fixed; [low, high]; {any: [...]} of these two


def amount(least: float, most: float, *, whole: bool = False, optional: bool = False) -> PlainValidator:
    """Checks a number from least to most, or the range or list that it is drawn from. optional: None is taken too."""
    numbers = f"a {'whole ' * whole}number from {least:g} to {most:g}"
    expected = f"expected {numbers}, [low, high] to draw it from, or {{any: [...]}} of numbers and ranges"

    def number(value: Any) -> float:
        fits = isinstance(value, int if whole else int | float) and not isinstance(value, bool)
        if not fits or not least <= value <= most:
            raise ValueError(expected)
        return int(value) if whole else float(value)

    def one(value: Any) -> float | tuple[float, float]:
        if isinstance(value, list | tuple):
            if len(value) != 2 or number(value[0]) > number(value[1]):
                raise ValueError(expected)
            return number(value[0]), number(value[1])
        return number(value)

    def check(value: Any) -> Amount | None:
        if value is None and optional:
            return None
        if isinstance(value, dict):
            listed = value.get("any")
            if value.keys() != {"any"} or not isinstance(listed, list | tuple) or not listed:
                raise ValueError(expected)
            return {"any": tuple(one(each) for each in listed)}
        return one(value)

    return PlainValidator(check)


def drawn_from(given: Amount, at: float) -> float:
    """The number drawn by a random number in [0, 1): the whole numbers of a range, and the parts of a list, are equally likely."""
    if isinstance(given, dict):
        at *= len(given["any"])
        return drawn_from(given["any"][int(at)], at % 1)
    if isinstance(given, tuple):
        low, high = given
        return low + int(at * (high - low + 1)) if isinstance(low, int) else low + at * (high - low)
    return given


def one_of(names: Any, at: float) -> Any:
    """The name that is given, or, of several, the one drawn by a random number in [0, 1)."""
    return names[int(at * len(names))] if isinstance(names, tuple) else names


def shown(option: Any) -> str:
    """An option of a step as a model's card writes it."""
    if isinstance(option, dict):
        return " or ".join(shown(each) for each in option["any"])
    if isinstance(option, tuple):
        return (" or " if isinstance(option[0], str) else " to ").join(shown(each) for each in option)
    return option if isinstance(option, str) else f"{option:g}"
