"""Helm's own engine, over the chart in the folder that is named.

Reads a list of values from standard input as JSON, each for a rendering, and writes what became of each:
`{"files": {template: [object, …]}, "notes": "…"}` or `{"error": "…"}`; beside them what Helm has to say of the chart itself.
"""

import json
import re
import sys

import helm_python as helm


def objects(text):
    """The documents of a rendered template, read by the parser that Helm reads YAML with."""
    documents = re.split(r"(?m)^---[ \t]*$", text)
    read = [helm.values_from_yaml(document) for document in documents]
    return [document for document in read if document]


def render(chart, values, name, namespace):
    try:
        files = chart.render(values, name=name, namespace=namespace)
    except helm.HelmError as error:
        return {"error": str(error)}
    notes = [text for path, text in files.items() if path.endswith("NOTES.txt")]
    manifests = {path: objects(text) for path, text in files.items() if path.endswith(".yaml")}
    return {"files": manifests, "texts": files, "notes": "".join(notes)}


def main():
    folder, name, namespace = sys.argv[1:]
    with helm.Chart.load(folder) as chart:
        told = {
            "helm": helm.helm_sdk_version(),
            "metadata": chart.metadata,
            "values": chart.values,
            "schema": chart.schema,
            "lint": helm.lint(folder, strict=True),
            "rendered": [render(chart, values, name, namespace) for values in json.load(sys.stdin)],
        }
    json.dump(told, sys.stdout)


if __name__ == "__main__":
    main()
