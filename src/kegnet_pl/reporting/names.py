"""Names of networks in tables, plots and pages; files and settings keep the keys of ``results.json``."""

import re

_UNTRAINED = {"T": "compressed, untrained", "S": "untrained"}
_TITLES = {"Uniform": "uniform noise", "Normal": "normal noise", "Real": "real data"}
"""Title of a source -> its name in names of students, where they differ."""

_COMPRESSIONS = {"ratio": "", "auto": "auto ", "pruning": "pruned "}
"""Name of a compression with a target, without the ratio -> the words before the ratio."""

_INT8 = " int8"


def name_network(method: str) -> str:
    """Return the name of a network: ``student (KegNet)`` for the method ``T+KegNet`` of a row of results."""
    plain = method.removesuffix(_INT8)
    start, _, title = plain.partition("+")
    name = _UNTRAINED.get(plain, plain)
    if start in _UNTRAINED and title:
        name = f"student ({name_source(title)})"
    return name if plain == method else f"{name}, int8"


def name_source(title: str) -> str:
    """Return the name of a source, or of a mixture: ``normal noise`` for the title ``Normal``."""
    members = [re.sub(r"^\w+", lambda word: _TITLES.get(word[0], word[0]), part) for part in title.split(" + ")]
    return " + ".join(members)


def name_compression(student: str) -> str:
    """Return the name of a compression: ``8x`` for ``ratio8``; other names stay as they are."""
    found = re.fullmatch(rf"({'|'.join(_COMPRESSIONS)})(\d+(?:\.\d+)?)", student)
    return student if found is None else f"{_COMPRESSIONS[found[1]]}{float(found[2]):.3g}x"
