"""Secrets in records: values of environment variables, passwords in addresses, keys and tokens are replaced."""

import os
import re
from collections.abc import Mapping
from typing import Any

_NAMES = re.compile(r"API_?KEY|ACCESS_KEY|TOKEN|SECRET|PASSWORD|PASSWD|CREDENTIAL", re.IGNORECASE)
"""Environment variables with such names hold secrets."""

_ADDRESS = re.compile(r"(?P<scheme>\b[a-zA-Z][\w+.-]{1,20}:/{1,2})(?P<user>[^\s/:@?#'\"]*)(?P<rest>[:@][^\s'\"]*)")
"""``https://user:password@host`` and ``https://token@host``; Python's paths have one slash."""

_PORT = re.compile(r":\d{1,5}(?![^/?#])")
_HOST = re.compile(r"@(?:localhost|\[|[\w-]+\.[\w.-]+|[\w.-]+:\d)")

_ANY_VALUE = r"api[_-]?key|access[_-]?key|secret[_-]?key|private[_-]?key|secret|password|passwd"
_KEY_VALUE = r"token|credentials?"
_NAMED = re.compile(rf"(?:(?P<any>{_ANY_VALUE})|(?P<long>{_KEY_VALUE})|(?P<key>key))\Z", re.IGNORECASE)
"""Settings whose value is a secret: any; one that looks like a key; only a long one."""

_NAME = rf"[\w./@-]{{0,100}}(?:{_ANY_VALUE}|{_KEY_VALUE}|key)"

_ASSIGNED = re.compile(
    rf"""^([ \t-]*[+~]{{0,2}}({_NAME})(?:=|:[ \t]+))(\S.*)$"""
    rf"""|(?<![\w./@-])(({_NAME})(?:=|["']\s*:\s*))("[^"]*"|'[^']*'|[^\s'",&}}\]]+)""",
    re.IGNORECASE | re.MULTILINE,
)
"""A line ``name=value`` or ``name: value``; ``name=value`` and ``"name": "value"`` in other text."""

_LOOKS_LIKE_A_KEY = re.compile(r"(?=\D*\d)[\w.~+=-][\w.~+/=:-]{7,}")
_LONG_KEY = re.compile(r"[0-9a-f]{40}|(?=\D*\d)(?=[^A-Z]*[A-Z])[\w-]{32,}")

_TOKENS = re.compile(
    r"\b(?:hf_[A-Za-z0-9]{30,}|gh[pousr]_[A-Za-z0-9]{30,}|github_pat_\w{22,}|glpat-[\w-]{20,}|xox[abeprs]-[\w-]{10,}"
    r"|sk-(?=[\w-]{0,200}\d)(?=[\w-]{0,200}[A-Z])[\w-]{20,}|(?:AKIA|ASIA)[A-Z0-9]{16}\b|AIza[\w-]{35}|wandb_v\d_\w{20,}"
    r"|eyJ[\w-]{8,}\.eyJ[\w-]{8,}\.[\w-]*)"
)
"""Keys of well-known services, by their prefixes."""

_HEADER = re.compile(
    r"""(authorization["']?\s*[:=]\s*["']?(?:(?:bearer|basic|token)\s+)?|\bbearer\s+(?=[^\s\d]*\d)(?=\S{16})"""
    r"""|[?&](?:x-amz-signature|signature|sig)=)[^\s'",&}\]]+""",
    re.IGNORECASE,
)
"""HTTP headers, and signatures in addresses."""

_HIDDEN = "***"

_SHORTEST = 6
"""Minimum length of a secret; shorter values may be part of other text by chance."""

_PLAIN = ("KEGNET_DATA_DIR", "KEGNET_SWEEP", "WANDB_PROJECT", "WANDB_MODE", "HOME", "PWD", "USER")
"""Environment variables that hold no secret."""

_read: dict[str, str] = {}
"""Values that settings have read from the environment -> name of the variable."""


def remember(name: str, value: str) -> None:
    """Record that settings read a value from an environment variable."""
    if name not in _PLAIN:
        _read[value] = name


def _known() -> dict[str, str]:
    named = {value: name for name, value in os.environ.items() if _NAMES.search(name) and name not in _PLAIN}
    found = {value: name for value, name in (named | _read).items() if len(value) >= _SHORTEST}
    return dict(sorted(found.items(), key=lambda pair: -len(pair[0])))


def conceal(value: Any, form: str = "${{oc.env:{}}}") -> Any:
    """Return a value for a record: ``${oc.env:NAME}`` replaces variables, ``***`` what looks like a secret.

    These are passwords and tokens in addresses and HTTP headers, keys with the prefix of a well-known service, and
    values of settings whose names end in words such as ``api_key``, ``token`` or ``password``.

    Args:
        value: A text, or plain values at any depth. Keys and values of ``_target_`` are not changed.
        form: Format of the text that replaces a secret; it gets the name of the variable.
    """
    return _replace(value, {secret: form.format(name) for secret, name in _known().items()})


def _replace(value: Any, known: Mapping[str, str]) -> Any:
    if isinstance(value, str):
        for secret, written in known.items():
            value = value.replace(secret, written)
        return _conceal_keys(conceal_password(value))
    if isinstance(value, Mapping):
        return {key: one if key == "_target_" else _replace_named(str(key), one, known) for key, one in value.items()}
    if isinstance(value, int | float) and str(value) in known:  # of ${oc.decode:${oc.env:NAME}}
        return known[str(value)]
    return [_replace(one, known) for one in value] if isinstance(value, list | tuple) else value


def _replace_named(name: str, value: Any, known: Mapping[str, str]) -> Any:
    replaced = _replace(value, known)
    return _HIDDEN if isinstance(replaced, str) and _is_secret(name, replaced) else replaced


def _is_secret(name: str, value: str) -> bool:
    """Return True if a setting of this name holds a secret."""
    named = _NAMED.search(name)
    if named is None or not value or value.startswith("${") or value.lower() in ("null", "none", "true", "false"):
        return False
    if named["any"]:
        return True
    return bool((_LOOKS_LIKE_A_KEY if named["long"] else _LONG_KEY).fullmatch(value))


def _conceal_keys(text: str) -> str:
    text = _TOKENS.sub(_HIDDEN, _HEADER.sub(rf"\1{_HIDDEN}", text))
    return _ASSIGNED.sub(_conceal_assigned, text)


def _conceal_assigned(match: re.Match[str]) -> str:
    before, name, value = match.groups()[:3] if match[1] else match.groups()[3:]
    bare = value.strip("\"'")
    return f"{before}{value.replace(bare, _HIDDEN)}" if _is_secret(name, bare) else match[0]


def conceal_password(text: str) -> str:
    """Return a text in which ``***`` replaces passwords, and names without a password, in addresses."""
    return _ADDRESS.sub(_conceal_address, text)


def _conceal_address(match: re.Match[str]) -> str:
    scheme, user, rest = match["scheme"], match["user"], match["rest"]
    if rest.startswith("@"):  # no password: the name is a token, unless it is that of a shell or a bucket
        is_web = scheme.lower().partition(":")[0].endswith(("http", "https"))
        return f"{scheme}{_HIDDEN}{rest}" if is_web and user not in ("", "git") else match[0]
    if "@" not in rest or _PORT.match(rest):
        return match[0]
    end = rest.rfind("@", 0, rest.find("/") if "/" in rest else None)
    if end < 0 or not _HOST.match(rest, end):  # the password has slashes: hide too much rather than too little
        end = rest.rfind("@")
    return f"{scheme}{user}:{_HIDDEN}{rest[end:]}"
