"""The trigger form's params, to and from the URL: the same names, schemas and sections as in Airflow's own form."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import jsonschema

from physionet_mirror.errors import InputError
from physionet_mirror.request import Request, checked_names

SENT = "form"
"""Present in URLs that a form made: in those, a checkbox that is absent is not ticked."""

_LINES = frozenset({"include", "exclude"})
"""Lists whose entries may hold commas: one a line."""

_LINK = re.compile(r"\[[^\]]*\]\([^)]*\)")  # Markdown's; the form's own descriptions link to this page

LONGEST = 1_000_000
"""Longest value accepted, in characters: the ids of 100,000 patients. Longer ones are refused, never truncated."""


@dataclass(frozen=True)
class Field:
    """One param as the form shows it.

    Attributes:
        kind: ``text``, ``number``, ``tick``, ``choice`` (one of), ``picks`` (any of) or ``lines``.
        options: (value, label) of a choice or of picks.
        error: Why its value is invalid; empty = it is valid.
    """

    name: str
    title: str
    description: str
    section: str
    kind: str
    value: Any
    options: Sequence[tuple[str, str]] = ()
    minimum: float | None = None
    maximum: float | None = None
    required: bool = False
    error: str = ""


@dataclass(frozen=True)
class Form:
    """The form as filled in.

    Attributes:
        conf: The params for Airflow, all of them.
        request: The same, validated; None if something is wrong.
        fields: By section, in the DAG's order.
        error: An error that belongs to no field.
    """

    conf: Mapping[str, Any]
    request: Request | None
    sections: Mapping[str, Sequence[Field]]
    errors: Mapping[str, str] = field(default_factory=dict)
    error: str = ""

    def title(self, name: str) -> str:
        """What the form calls a param."""
        return next((f.title for fields in self.sections.values() for f in fields if f.name == name), name)


def read(params: Mapping[str, Mapping[str, Any]], query: Any) -> Form:
    """The form that a URL or a submitted form describes.

    Args:
        params: As `runs.dag_params` gives them.
        query: The URL's query or the submitted form, with ``get``, ``getlist`` and ``keys``.
    """
    sent = query.get(SENT) == "1"
    conf: dict[str, Any] = {}
    errors: dict[str, str] = {}
    for name, param in params.items():
        try:
            conf[name] = _value(param, query.getlist(name), sent, by_line=name in _LINES)
            jsonschema.validate(conf[name], param["schema"])
        except jsonschema.ValidationError as error:
            errors[name] = _sentence(name, param, error)
        except _TooLong as error:
            conf[name] = param["value"]
            errors[name] = str(error)
        except ValueError:
            conf[name] = query.get(name)
            errors[name] = "This is not a number."
    request, other = None, ""
    try:
        checked_names(set(query.keys()) - {SENT}, params)
        request = Request.from_params(conf)
    except InputError as error:
        # The engine's message replaces the schema's, so that page, form and API say the same.
        name, _, text = str(error).partition(": ")
        if name in params:
            errors[name] = text.replace(" Nothing was done.", "")
        else:
            other = str(error)
    return Form(conf, None if errors else request, _sections(params, conf, errors), errors, other)


def with_error(form: Form, error: InputError, params: Mapping[str, Mapping[str, Any]]) -> Form:
    """The same form with an error that was found later, at its field if the message names one."""
    name, _, text = str(error).partition(": ")
    text = re.sub(r"Nothing was done; (\w)", lambda found: found[1].upper(), text).replace(" Nothing was done.", "")
    if name not in params:
        return Form(form.conf, None, form.sections, form.errors, str(error))
    errors = {**form.errors, name: text}
    return Form(form.conf, None, _sections(params, form.conf, errors), errors)


class _TooLong(ValueError):
    """A value longer than `LONGEST`."""


def _value(param: Mapping[str, Any], given: list[str], sent: bool, *, by_line: bool) -> Any:
    """A param's value; blank entries are kept, so that they are refused as in the DAG's conf."""
    size = sum(map(len, given)) + len(given)
    if size > LONGEST:
        raise _TooLong(
            f"This has {size:,} characters, and at most {LONGEST:,} are taken here. Nothing was cut: shorten it, put the "
            "images' paths into a file and name it under File list, or give the conf to Airflow's API."
        )
    kinds = _types(param)
    if "array" in kinds:
        if not given:
            return [] if sent else (param["value"] or [])
        if _options(param):
            return [text.strip() for text in given]
        # Entries are separated by newlines or commas. An empty line is not an entry; two commas enclose a blank one.
        lines = [line for text in given for line in text.splitlines() if line.strip()]
        if by_line:
            return [line.strip() for line in lines]
        return [part.strip() for line in lines for part in line.strip().removesuffix(",").split(",")]
    if "boolean" in kinds:
        return given[-1].lower() in ("true", "on", "1") if given else (False if sent else param["value"])
    if not given:
        return param["value"]
    text = given[-1].strip()
    if not text:
        return None if "null" in kinds else ("" if "string" in kinds else param["value"])
    if "integer" in kinds:
        return int(text)
    if "number" in kinds:
        number = float(text)
        if not math.isfinite(number):
            raise ValueError(text)
        return int(number) if number.is_integer() else number
    return text


def _types(param: Mapping[str, Any]) -> tuple[str, ...]:
    kinds = param["schema"].get("type", "string")
    return (kinds,) if isinstance(kinds, str) else tuple(kinds)


def _options(param: Mapping[str, Any]) -> list[tuple[str, str]]:
    schema = param["schema"]
    values = schema.get("enum") or schema.get("examples") or ()
    labels = schema.get("values_display") or {}
    return [(str(value), str(labels.get(value, value))) for value in values]


def _sections(
    params: Mapping[str, Mapping[str, Any]], conf: Mapping[str, Any], errors: Mapping[str, str]
) -> dict[str, list[Field]]:
    sections: dict[str, list[Field]] = {}
    for name, param in params.items():
        schema, kinds = param["schema"], _types(param)
        if "array" in kinds:
            kind = "picks" if _options(param) else "lines"
        elif "boolean" in kinds:
            kind = "tick"
        elif schema.get("enum"):
            kind = "choice"
        else:
            kind = "number" if {"integer", "number"} & set(kinds) else "text"
        shown = Field(
            name=name,
            title=str(schema.get("title") or name),
            description=param["description"] or _LINK.sub("", str(schema.get("description_md") or "")).strip(),
            section=str(schema.get("section") or "Params"),
            kind=kind,
            value=conf.get(name),
            options=_options(param),
            minimum=schema.get("minimum"),
            maximum=schema.get("maximum"),
            required="null" not in kinds and kind in ("text", "number"),
            error=errors.get(name, ""),
        )
        sections.setdefault(shown.section, []).append(shown)
    return sections


_SUCH_AS = {
    "bucket": "my-lab-bucket",
    "prefix": "mimic-cxr-jpg/2.1.0",
    "file_list": "s3://my-lab-bucket/list.txt",
    "subjects": "10000032",
    "project": "mimiciv/3.1",
    "include": "hosp/*.csv.gz",
    "exclude": "**/*.dcm",
}


def _sentence(name: str, param: Mapping[str, Any], error: jsonschema.ValidationError) -> str:
    """A schema error in plain words."""
    schema = error.schema if isinstance(error.schema, Mapping) else {}
    if error.instance in (None, ""):
        return "An entry of this list is blank." if error.absolute_path else "This is needed."
    if error.validator in ("minimum", "maximum"):
        least, most = param["schema"].get("minimum"), param["schema"].get("maximum")
        bounds = f"from {least:,} to {most:,}" if most is not None and least is not None else ""
        return f"It must be {bounds or ('at least' if error.validator == 'minimum' else 'at most')}" + (
            "." if bounds else f" {error.validator_value:,}."
        )
    if error.validator == "enum":
        return f"{json.dumps(error.instance)[:60]} is none of {', '.join(map(str, schema.get('enum', ())))}."
    return f"{json.dumps(error.instance)[:60]} does not have the form that is wanted here" + (
        f", such as {example}." if (example := _SUCH_AS.get(name)) else "."
    )
