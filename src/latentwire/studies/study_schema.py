"""The JSON Schema of a study, with which editors complete and check its keys.

It knows every key, its type, its default and its meaning. What depends on several keys at once (a reading that no
stage has, an objective that the wire cannot serve) is checked by `latentwire run` before anything starts.
"""

from __future__ import annotations

from typing import Any

from pydantic.json_schema import GenerateJsonSchema, JsonSchemaValue
from pydantic_core import core_schema

from latentwire.studies.field_docs import descriptions, summary
from latentwire.studies.mistakes import SHARED, SWEEP, SWEPT
from latentwire.studies.naming import FILES, MODELS
from latentwire.studies.spec import Study
from latentwire.tasks import DATA_KINDS

BESIDE = {
    SHARED: "Settings that every `finetune` stage has; those that a stage sets itself come first.",
    MODELS: "Models under short names; `$NAME` stands for one anywhere in the study.",
    FILES: "Files under short names; `$NAME` stands for one anywhere in the study.",
}
"""Keys of a study that are replaced when it is loaded, with their meaning."""
SWEEP_MEANING = "By dotted setting, the values to try: one stage is made for each combination."


class _Described(GenerateJsonSchema):
    """Pydantic's generator, with the meanings that the docstrings give."""

    def model_schema(self, schema: core_schema.ModelSchema) -> JsonSchemaValue:
        made = super().model_schema(schema)
        model = schema["cls"]
        made["description"] = summary(model)
        for name, meaning in descriptions(model).items():
            made.get("properties", {}).get(name, {})["description"] = meaning
        return made

    def tagged_union_schema(self, schema: core_schema.TaggedUnionSchema) -> JsonSchemaValue:
        made = super().tagged_union_schema(schema)
        # OpenAPI's keyword; and where nothing says which kind is meant, every kind with defaults alone would fit.
        if made.pop("discriminator", None):
            made["required"] = ["kind"]
        return made


def study_schema() -> dict[str, Any]:
    """The JSON Schema (2020-12) of a study as its YAML file is written.

    Example:
        >>> study_schema()["properties"]["limit"]["description"]
        'Use the first `limit` examples of each task.'
    """
    schema = Study.model_json_schema(schema_generator=_Described)
    definitions = schema["$defs"]
    stages = {kind: definitions[name] for kind, name in (("finetune", "Finetune"), ("wire", "TrainWire"))}
    for kind, stage in stages.items():
        # What else is required may come from `finetuning`, a preset or a sweep.
        stage["required"] = ["kind"]
        if kind in SWEPT:
            stage["properties"][SWEEP] = {"type": "object", "minProperties": 1, "description": SWEEP_MEANING}
    kinds = {"enum": list(DATA_KINDS)}, {"pattern": r"^\$\w+$"}
    definitions["FileTask"]["properties"]["kind"]["anyOf"] = list(kinds)
    shared = {
        name: field for name, field in stages["finetune"]["properties"].items() if name not in ("kind", SWEEP)
    }
    texts = {"type": "object", "additionalProperties": {"type": "string"}}
    schema["properties"] |= {
        SHARED: {"type": "object", "properties": shared, "additionalProperties": False},
        MODELS: dict(texts),
        FILES: dict(texts),
    }
    for name, meaning in BESIDE.items():
        schema["properties"][name]["description"] = meaning
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **schema, "title": "A LatentWire study"}
