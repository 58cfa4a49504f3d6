//! Whether the mesh may be installed, by whoever asks.

use super::super::rights::ESCALATE;
use super::super::seen::{Seen, said};
use super::{Judged, error, ok, warning};
use crate::check::count;

pub(crate) fn not_installed(seen: &Seen) -> Judged {
    match seen.deployment.as_ref()? {
        None => ok(format!("there is none in {}", seen.namespace)).some(),
        Some(deployment) => {
            let version = said(deployment, "labels", "app.kubernetes.io/version");
            warning(format!("there is one in {} already, of version {version}", seen.namespace)).some()
        }
    }
}

pub(crate) fn rights(seen: &Seen) -> Judged {
    let rights = seen.rights.as_ref()?;
    let lacking: Vec<String> = rights
        .iter()
        .filter(|(right, may)| !may && *right != ESCALATE)
        .map(|(right, _)| right.said(&seen.namespace))
        .collect();
    if !lacking.is_empty() {
        let message = format!("you may not do {} of what an install does", count(lacking.len(), "thing"));
        return error(message).details(lacking).some();
    }
    if rights.iter().any(|(right, may)| *right == ESCALATE && !may) {
        let hint = "you may give the control plane only rights that you have yourself, which are those of the table \"What the control plane may do\" in docs/kubernetes.md";
        return warning("you may create roles, but not such as have more rights than you").hint(hint).some();
    }
    ok(format!("you may do all {} things that an install does", rights.len())).some()
}
