"""Which files of a folder belong to a split, by their names: one rule set for Parquet, tar, zips and folders.

The rules are those of Hugging Face's `datasets`: a word for a split, between characters that are no letters, in the
name of the file (``mnist-train.parquet``, ``train_0.parquet``, ``test-00000-of-00004.tar``) or of a folder
(``train/0000.parquet``, ``split=test/part-0.parquet``); a name before ``-00000-of-00004`` is a split too. Beyond them,
two words that disagree are refused, and what is not taken is said.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from edm_ray.data.importers.files import readable
from edm_ray.errors import InputError, counted

WORDS = {
    "train": ("train", "training"),
    "validation": ("validation", "valid", "val", "dev"),
    "test": ("test", "testing", "eval", "evaluation", "t10k"),
}
_SPLIT_OF = {word: split for split, words in WORDS.items() for word in words}
_SHARD = re.compile(r"(.*?)[-_.]?\d+-of-(\d+)(?=\D|$)")
_NO_WORD = "no word for a split"


@dataclass(frozen=True)
class Chosen:
    names: tuple[str, ...]
    notes: tuple[str, ...]


def canonical(word: str) -> str:
    """``val`` -> ``validation``; a word that is no split's stays as it is, in small letters."""
    return _SPLIT_OF.get(word.lower(), word.lower())


def is_split_word(name: str) -> bool:
    return name.lower() in _SPLIT_OF


def says_split(name: str) -> bool:
    """Whether a word for a split stands in a file's name."""
    return bool(_said(name))


def split_of(path: str, where: str = "") -> str | None:
    """The split that a path names, None when it names none. Raises InputError when it names two."""
    *folders, base = path.split("/")
    for folder in folders:
        if folder.lower().startswith("split=") and len(folder) > len("split="):
            return canonical(folder[len("split=") :])
    shard = _SHARD.match(base)
    by_file = _said(shard[1] if shard else base)
    by_folder = {_SPLIT_OF[f.lower()] for f in folders if f.lower() in _SPLIT_OF}
    if len(by_file) > 1 or len(by_folder) > 1 or (by_file and by_folder and by_file != by_folder):
        words = " and ".join(sorted(by_file | by_folder))
        raise InputError(
            f"{where}: {readable(path)} names two splits, {words}; rename it, or give the one file as SOURCE"
        )
    if said := by_file or by_folder:
        return said.pop()
    loose: set[str] = set().union(*map(_said, folders))
    if len(loose) == 1:
        return loose.pop()
    return shard[1].lower() if shard and shard[1] and not loose else None


def _said(text: str) -> set[str]:
    """Splits whose words stand in a text."""
    found = {_SPLIT_OF[word] for word in re.split(r"[\W\d_]+", text.lower()) if word in _SPLIT_OF}
    return found | ({"test"} if "t10k" in re.split(r"[\W_]+", text.lower()) else set())


def choose_files(names: Sequence[str], split: str, where: str) -> Chosen:
    """The files of a split among those of a folder. Where no name says a split, all are one split, "train".

    Raises InputError when the split is not there, or a name says two.
    """
    groups: dict[str | None, list[str]] = {}
    for name in names:
        groups.setdefault(split_of(name, where), []).append(name)
    words = [word for word in groups if word is not None]
    one_name = len(groups) == 1 and not any(word in WORDS for word in words)
    if one_name and split.lower() in {"train", *words}:
        return Chosen(tuple(names), missing_shards(names))
    taken = groups.get(canonical(split)) or [name for name in names if split.lower() in _tokens(name)]
    if not taken:
        words = [] if one_name else words
        what = f"it holds {_counted(groups)}" if words else "none of its names says a split"
        fix = "--split may be " + ", ".join(sorted(words)) if words else "leave --split out to read all of it"
        raise InputError(f"{where}: no split {split!r}: {what}; {fix}")
    notes: tuple[str, ...] = ()
    if len(taken) < len(names):
        taken_names = set(taken)
        aside = {word: [n for n in group if n not in taken_names] for word, group in groups.items()}
        first = next(name for name in names if name not in taken_names)
        notes = (
            f"split {split}: {len(taken):,} of {len(names):,} files are taken (the first: {readable(taken[0])}); "
            f"left aside: {_counted({word: group for word, group in aside.items() if group})} "
            f"(the first: {readable(first)})",
        )
    return Chosen(tuple(taken), notes + missing_shards(taken))


def _tokens(name: str) -> set[str]:
    """What --split may also name: a folder, the file without its suffix, a word between its dots, dashes and _."""
    *folders, base = name.lower().split("/")
    return {*folders, *re.split(r"[-_. ]+", base)}


def _counted(groups: dict[str | None, list[str]]) -> str:
    def files(group: list[str]) -> str:
        return counted(len(group), "file")

    known = [f"{word} ({files(group)})" for word, group in sorted((w, g) for w, g in groups.items() if w is not None)]
    return ", ".join(known + [f"{files(group)} with {_NO_WORD}" for word, group in groups.items() if word is None])


def missing_shards(names: Iterable[str]) -> tuple[str, ...]:
    """A note for each set of files ``...-00000-of-00004`` that is not whole."""
    sets: dict[tuple[str, int], int] = {}
    for name in names:
        folder, _, base = name.rpartition("/")
        if shard := _SHARD.match(base):
            key = (f"{folder}/{shard[1]}".lstrip("/"), int(shard[2]))
            sets[key] = sets.get(key, 0) + 1
    return tuple(
        f"only {count:,} of the {of:,} files {readable(name) or '...'}-NNNNN-of-{of:05d} are there: the rest is missing"
        for (name, of), count in sets.items()
        if count < of
    )


def note_of_file(uri: str, split: str) -> tuple[str, ...]:
    """What to say of a single file that was named: its name may say another split, which is refused unless the split
    asked for is the default."""
    base = uri.rsplit("/", 1)[-1]
    try:
        said = split_of(base)
    except InputError:
        return ()
    if said not in WORDS or said == canonical(split):
        return ()
    if canonical(split) != "train":
        raise InputError(f"{uri}: its name says the split {said}, --split says {split}; give --split {said}")
    return (f"its name says the split {said}; all of it is read as {split} (--split {said} names it so)",)


def choose_folders(names: Sequence[str], split: str, where: str) -> tuple[str, tuple[str, ...]]:
    """Pictures in ``train/``, ``test/`` ...: the prefix of the split's, and notes. Empty when the top folders are not
    all words for splits: then they are classes. Raises InputError when they are, and the split is not among them."""
    tops: dict[str, int] = {}
    for name in names:
        top, slash, _ = name.partition("/")
        if not slash or not is_split_word(top):
            return "", ()
        tops[top] = tops.get(top, 0) + 1
    taken = [top for top in tops if canonical(top) == canonical(split)]
    have = ", ".join(f"{top} ({count:,} pictures)" for top, count in sorted(tops.items()))
    if len(taken) != 1:
        raise InputError(
            f"{where}: its folders are splits: {have}; {len(taken)} of them are {split!r}; give --split NAME"
        )
    aside = ", ".join(f"{top} ({count:,} pictures)" for top, count in sorted(tops.items()) if top != taken[0])
    said = f"its folders are splits: {taken[0]} is taken ({tops[taken[0]]:,} pictures)"
    return f"{taken[0]}/", (said + (f", left aside: {aside}" if aside else ""),)
