"""The manifest as an in-toto statement (v1) with a SLSA provenance predicate, ready to be signed by who publishes.

cosign attest-blob --statement release.intoto.json ...     or any other tool of in-toto and sigstore
"""

import json
from collections.abc import Mapping, Sequence
from typing import Any

from .manifest import HashedFile, Manifest, plain

STATEMENT = "release.intoto.json"
TYPE = "https://in-toto.io/Statement/v1"
PREDICATE = "https://slsa.dev/provenance/v1"
BUILD = "https://github.com/moe-gguf/moe-gguf/blob/main/docs/release.md"


def statement_text(manifest: Manifest, others: Sequence[HashedFile] = ()) -> str:
    """Return the statement as JSON: every file with its hash, from what it was made, with which options and programs.

    `others` are files that the manifest cannot list: itself. There is no time in it: the signature brings one.
    """
    sources = [
        {"name": f"{model.repo or model.name}/{file.name}", "digest": {"sha256": file.sha256}}
        for model in manifest.source.models
        for file in model.files
    ]
    parameters: Mapping[str, Any] = {
        "source": {"kind": manifest.source.kind, "name": manifest.source.name},
        "options": plain(manifest.options),
    }
    statement = {
        "_type": TYPE,
        "subject": [{"name": file.name, "digest": {"sha256": file.sha256}} for file in (*manifest.listed, *others)],
        "predicateType": PREDICATE,
        "predicate": {
            "buildDefinition": {
                "buildType": BUILD,
                "externalParameters": parameters,
                "internalParameters": {"programs": dict(manifest.programs)},
                "resolvedDependencies": sources,
            },
            "runDetails": {
                "builder": {"id": "https://github.com/moe-gguf/moe-gguf", "version": dict(manifest.programs)}
            },
        },
    }
    return json.dumps(statement, indent=1, ensure_ascii=False) + "\n"
