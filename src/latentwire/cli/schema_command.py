"""`latentwire schema`: the keys of a study, for editors."""

from __future__ import annotations

from latentwire.cli.application import app


@app.command()
def schema() -> None:
    """Print the JSON Schema of studies, with which an editor completes and checks the keys of a YAML file."""
    import json

    from latentwire.studies.study_schema import study_schema

    print(json.dumps(study_schema(), indent=1, ensure_ascii=False))
