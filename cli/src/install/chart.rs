//! The chart `helm/tulle`, as it was when this command was built: what it installs is what its version needs.

use std::fs;
use std::path::Path;

use anyhow::{Context as _, Result};

/// Every file by its path in the chart.
macro_rules! files {
    ($($path:literal),* $(,)?) => {
        &[$(($path, include_str!(concat!(env!("CARGO_MANIFEST_DIR"), "/../helm/tulle/", $path)))),*]
    };
}

const FILES: &[(&str, &str)] = files![
    ".helmignore",
    "Chart.yaml",
    "files/crds/authorizationpolicies.yaml",
    "files/crds/egresspolicies.yaml",
    "files/crds/externalauthorizations.yaml",
    "files/crds/faultpolicies.yaml",
    "files/crds/meshes.yaml",
    "files/crds/peerauthentications.yaml",
    "files/crds/ratelimitpolicies.yaml",
    "files/crds/requestauthentications.yaml",
    "files/crds/telemetrypolicies.yaml",
    "files/crds/trafficpolicies.yaml",
    "files/dashboards/tulle-control-plane.json",
    "files/dashboards/tulle-mesh.json",
    "files/dashboards/tulle-proxy.json",
    "files/dashboards/tulle-route.json",
    "files/dashboards/tulle-service.json",
    "files/rules/alerts.yaml",
    "files/rules/recording.yaml",
    "templates/NOTES.txt",
    "templates/_helpers.tpl",
    "templates/certificate.yaml",
    "templates/configmap.yaml",
    "templates/crds.yaml",
    "templates/deployment.yaml",
    "templates/monitoring.yaml",
    "templates/networkpolicy.yaml",
    "templates/poddisruptionbudget.yaml",
    "templates/rbac.yaml",
    "templates/service.yaml",
    "templates/serviceaccount.yaml",
    "templates/webhook.yaml",
    "values-ha.yaml",
    "values.schema.json",
    "values.yaml",
];

/// What values-ha.yaml is called in the chart.
pub(super) const HIGH_AVAILABILITY: &str = "values-ha.yaml";

/// Writes the chart into a folder, which is made.
///
/// # Errors
/// Those of the file system.
pub(super) fn write(folder: &Path) -> Result<()> {
    for (path, text) in FILES {
        let path = folder.join(path);
        let parent = path.parent().unwrap_or(folder);
        fs::create_dir_all(parent).with_context(|| format!("cannot make {}", parent.display()))?;
        fs::write(&path, text).with_context(|| format!("cannot write {}", path.display()))?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn walk(folder: &Path, within: &Path, found: &mut Vec<String>) {
        for entry in fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                walk(&path, within, found);
            } else {
                found.push(path.strip_prefix(within).unwrap().display().to_string());
            }
        }
    }

    #[test]
    fn every_file_of_the_chart_is_in_the_command() {
        let chart = Path::new(env!("CARGO_MANIFEST_DIR")).join("../helm/tulle");
        let mut there = Vec::new();
        walk(&chart, &chart, &mut there);
        there.sort();
        let here: Vec<&str> = FILES.iter().map(|(path, _)| *path).collect();
        assert_eq!(here, there, "FILES of cli/src/install/chart.rs is not what is in helm/tulle");

        let folder = tempfile::tempdir().unwrap();
        let folder = folder.path().join("tulle");
        write(&folder).unwrap();
        let mut written = Vec::new();
        walk(&folder, &folder, &mut written);
        written.sort();
        assert_eq!(written, there);
        for path in written {
            assert_eq!(fs::read(folder.join(&path)).unwrap(), fs::read(chart.join(&path)).unwrap(), "{path}");
        }
    }
}
