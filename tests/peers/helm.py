"""Helm's command line, as far as `tulle install`, `upgrade` and `uninstall` use it, and `rollback`: Helm's own engine does what is asked.

Flags are read as Helm reads them (helm.sh/docs/helm); one that is not here is an error. `--reset-then-reuse-values` is what Helm makes of it: the
release's own values, under those that are given.
"""

import argparse
import json
import sys
from pathlib import Path

import helm_python as helm


def merged(under, over):
    """Values, of which those `over` win, map by map."""
    both = dict(under)
    for key, value in over.items():
        below = both.get(key)
        both[key] = merged(below, value) if isinstance(below, dict) and isinstance(value, dict) else value
    return both


def values(arguments):
    """What is given: files in their order, then `--set`."""
    given = {}
    for file in arguments.values:
        given = merged(given, helm.values_from_yaml(Path(file).read_text(encoding="utf-8")))
    for expression in arguments.set:
        given = merged(given, helm.parse_set_string(expression))
    return given


def parser():
    common = argparse.ArgumentParser(add_help=False)
    common.add_argument("--namespace", default="default")
    common.add_argument("--kubeconfig")
    common.add_argument("--kube-context")
    apply = argparse.ArgumentParser(add_help=False, parents=[common])
    apply.add_argument("name")
    apply.add_argument("chart")
    apply.add_argument("--values", action="append", default=[])
    apply.add_argument("--set", action="append", default=[])
    apply.add_argument("--wait", action="store_true")
    apply.add_argument("--timeout", choices=["5m"])
    apply.add_argument("--dry-run", choices=["server"])
    apply.add_argument("--output", choices=["json"])
    whole = argparse.ArgumentParser(prog="helm", allow_abbrev=False)
    verbs = whole.add_subparsers(dest="verb", required=True)
    verbs.add_parser("version", parents=[common]).add_argument("--template", choices=["{{.Version}}"])
    verbs.add_parser("install", parents=[apply]).add_argument("--create-namespace", action="store_true")
    upgrade = verbs.add_parser("upgrade", parents=[apply])
    upgrade.add_argument("--reset-values", action="store_true")
    upgrade.add_argument("--reset-then-reuse-values", action="store_true")
    get = verbs.add_parser("get", parents=[common])
    get.add_argument("what", choices=["manifest"])
    get.add_argument("name")
    for verb in ["rollback", "uninstall"]:
        verbs.add_parser(verb, parents=[common]).add_argument("name")
    return whole


def applied(cluster, arguments):
    given = values(arguments)
    how = {
        "namespace": arguments.namespace,
        "dry_run": arguments.dry_run,
        "wait": "watcher" if arguments.wait else None,
        "timeout": 300,
    }
    if arguments.verb == "install":
        create = arguments.create_namespace
        return cluster.install(arguments.chart, arguments.name, given, create_namespace=create, **how)
    if arguments.reset_then_reuse_values:
        given = merged(cluster.get_values(arguments.name) or {}, given)
    return cluster.upgrade(arguments.chart, arguments.name, given, reset_values=True, **how)


def run(arguments):
    if arguments.verb == "version":
        print(helm.helm_sdk_version())
        return
    with helm.Config(
        kubeconfig_path=arguments.kubeconfig, kube_context=arguments.kube_context, namespace=arguments.namespace
    ) as cluster:
        match arguments.verb:
            case "get":
                print(cluster.status(arguments.name)["manifest"])
            case "rollback":
                cluster.rollback(arguments.name, timeout=300)
                print("Rollback was a success! Happy Helming!")
            case "uninstall":
                cluster.uninstall(arguments.name, timeout=300)
                print(f'release "{arguments.name}" uninstalled')
            case _:
                release = applied(cluster, arguments)
                print(json.dumps(release) if arguments.output else f"STATUS: {release['status']}")


def main():
    try:
        run(parser().parse_args())
    except helm.HelmError as error:
        sys.exit(f"Error: {error}")


if __name__ == "__main__":
    main()
