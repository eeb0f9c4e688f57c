"""Classes that a class-conditional network would be trained on: those that have something in the train split."""

from __future__ import annotations

from data import AnyDataset
from experiment.config import Config
from experiment.config.left_out import leaves_out

_MOST_NUMBERS = 5  # that a line lists
_CURES = {
    "folder": "put the images of each class into a folder of its own",
    "npz": "save labels beside the images",
}


def check_trained_classes(config: Config, dataset: AnyDataset) -> None:
    """Refuse to begin a class-conditional run of one class, or mostly of classes that nothing is of.

    Args:
        config: The config.
        dataset: The train split.

    Raises:
        ValueError: In one line, with the cure.
    """
    if not config.model.class_conditional:
        return
    if dataset.num_classes == 1:
        cure = _CURES.get(dataset.name, "take labelled data")
        raise ValueError(
            f"config.model.class_conditional=True needs labels of two classes or more, which {dataset.name} does not "
            f"have; {cure}, or set it to False"
        )
    present = dataset.labels.unique().tolist()
    if dataset.num_classes > 2 * len(present):
        raise ValueError(
            f"config.model.class_conditional=True makes a network of {dataset.num_classes:,} classes, of which only "
            f"{len(present):,} are in {dataset.split} (labels {_numbers(present)}); number the labels from 0 on "
            "without gaps, or set it to False"
        )


def check_null_condition(config: Config) -> None:
    """Refuse to begin a run whose network takes no condition too, label -1 or NaN, but is never trained so.

    Raises:
        ValueError: In one line, with the cure.
    """
    network = config.model.network
    promised = network.get("null_condition") or network.get("null_class")
    if promised and not leaves_out(config):
        raise ValueError(
            "config.model.network.null_condition=True promises a network that is trained without its condition now and "
            "then, which it is not; set config.model.condition_dropout=0.1 instead"
        )


def absent_line(config: Config, dataset: AnyDataset) -> str | None:
    """Classes that a class-conditional network is not trained on; None where there are none.

    Args:
        config: The config.
        dataset: The train split.
    """
    if not config.model.class_conditional:
        return None
    absent = sorted({*range(dataset.num_classes)}.difference(dataset.labels.unique().tolist()))
    if not absent:
        return None
    what = "class has" if len(absent) == 1 else "classes have"
    return (
        f"{len(absent)} of {dataset.num_classes} {what} nothing in {dataset.split} ({_numbers(absent)}), so that their "
        "samples will be of no trained class"
    )


def _numbers(classes: list[int]) -> str:
    if len(classes) <= _MOST_NUMBERS:
        return ", ".join(map(str, classes))
    return f"{', '.join(map(str, classes[: _MOST_NUMBERS - 2]))}, ... {classes[-1]}"
