//! What the control plane would say about a folder of YAML, before it has to.
//!
//! The findings are the control plane's own, made by the code that it runs; only printing and the exit status are here.

use std::path::Path;
use std::process::ExitCode;

use anyhow::Result;
use serde::Serialize;
use tulle_control_plane::finding::{Finding, Severity};
use tulle_control_plane::model::{Condition, PolicyStatus, RouteStatus};
use tulle_control_plane::source::{self, FolderError};

use super::count;
use crate::brief::brief;
use crate::output::{self, Format};

#[derive(Debug, Serialize)]
struct Checked {
    ok: bool,
    errors: usize,
    warnings: usize,
    findings: Vec<Finding>,
    routes: Vec<RouteStatus>,
    policies: Vec<PolicyStatus>,
}

/// Checks the folder. That it cannot be read is a finding as well, so that `-o json` is JSON whatever is wrong.
///
/// # Errors
/// Those of standard output.
pub(super) fn run(folder: &Path, format: Format) -> Result<ExitCode> {
    let source::Checked { findings, routes, policies } = source::check(folder).unwrap_or_else(|error| {
        source::Checked { findings: vec![unreadable(&error)], ..source::Checked::default() }
    });
    let errors = findings.iter().filter(|finding| finding.severity == Severity::Error).count();
    let warnings = findings.len() - errors;
    let checked = Checked { ok: errors == 0, errors, warnings, findings, routes, policies };
    match format {
        Format::Json => output::print_json(&checked)?,
        Format::Table => {
            let mut lines: Vec<String> = checked.findings.iter().map(ToString::to_string).collect();
            lines.extend(checked.routes.iter().flat_map(route_lines));
            lines.extend(checked.policies.iter().flat_map(policy_lines));
            lines.push(summary(errors, warnings));
            output::print(&lines.join("\n"))?;
        }
    }
    Ok(if checked.ok { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

fn unreadable(error: &FolderError) -> Finding {
    Finding {
        file: Some(brief(&error.path.display().to_string(), std::env::args_os())),
        line: None,
        column: None,
        severity: Severity::Error,
        object: None,
        field: None,
        message: format!("the folder cannot be read: {}", error.source),
        hint: Some("name the folder that the control plane is to serve".to_owned()),
    }
}

/// A line for each parent.
fn route_lines(route: &RouteStatus) -> impl Iterator<Item = String> {
    route.parents.iter().map(|parent| {
        let at = &parent.parent_ref;
        let port = at.port.map(|port| format!(":{port}")).unwrap_or_default();
        let section = at.section_name.as_ref().map(|name| format!(" ({name})")).unwrap_or_default();
        let conditions: Vec<String> = parent.conditions.iter().map(condition).collect();
        format!(
            "{} {}/{} at Service {}/{}{port}{section}: {}",
            route.kind,
            route.namespace,
            route.name,
            at.namespace,
            at.name,
            conditions.join(", ")
        )
    })
}

/// A line for each target.
fn policy_lines(policy: &PolicyStatus) -> impl Iterator<Item = String> {
    policy.ancestors.iter().map(|ancestor| {
        let at = &ancestor.ancestor_ref;
        let section = at.section_name.as_ref().map(|name| format!(" ({name})")).unwrap_or_default();
        let conditions: Vec<String> = ancestor.conditions.iter().map(condition).collect();
        // A namespace is in none.
        let within = if at.namespace.is_empty() { String::new() } else { format!("{}/", at.namespace) };
        format!(
            "{} {}/{} at {} {within}{}{section}: {}",
            policy.kind,
            policy.namespace,
            policy.name,
            at.kind,
            at.name,
            conditions.join(", ")
        )
    })
}

/// The reason only where it is not the condition's own name.
fn condition(condition: &Condition) -> String {
    let not = if condition.status == "True" { "" } else { "not " };
    if condition.reason == condition.condition {
        return format!("{not}{}", condition.condition);
    }
    format!("{not}{} ({})", condition.condition, condition.reason)
}

fn summary(errors: usize, warnings: usize) -> String {
    match (errors, warnings) {
        (0, 0) => "ok: nothing found".to_owned(),
        (0, _) => format!("ok: no errors, {}", count(warnings, "warning")),
        _ => format!("{}, {}", count(errors, "error"), count(warnings, "warning")),
    }
}

#[cfg(test)]
mod tests {
    use tulle_control_plane::model::{ParentRef, ParentStatus};

    use super::*;

    #[test]
    fn a_route_has_a_line_for_each_parent() {
        let condition =
            |condition, status, reason| Condition { condition, status, reason, message: String::new() };
        let parent = |port, section: Option<&str>, conditions| ParentStatus {
            parent_ref: ParentRef {
                group: "",
                kind: "Service",
                namespace: "shop".to_owned(),
                name: "orders".to_owned(),
                port,
                section_name: section.map(str::to_owned),
            },
            conditions,
        };
        let resolved = condition("ResolvedRefs", "False", "BackendNotFound");
        let route = RouteStatus {
            kind: "HTTPRoute".to_owned(),
            namespace: "a".to_owned(),
            name: "b".to_owned(),
            parents: vec![
                parent(Some(80), None, vec![condition("Accepted", "True", "Accepted"), resolved]),
                parent(None, Some("http"), vec![condition("Accepted", "False", "NoMatchingParent")]),
            ],
            generation: None,
        };
        assert_eq!(
            route_lines(&route).collect::<Vec<_>>(),
            [
                "HTTPRoute a/b at Service shop/orders:80: Accepted, not ResolvedRefs (BackendNotFound)",
                "HTTPRoute a/b at Service shop/orders (http): not Accepted (NoMatchingParent)",
            ]
        );
    }

    #[test]
    fn the_last_line_says_what_it_came_to() {
        assert_eq!(summary(0, 0), "ok: nothing found");
        assert_eq!(summary(0, 2), "ok: no errors, 2 warnings");
        assert_eq!(summary(1, 0), "1 error, 0 warnings");
    }
}
