//! Where the proxy's listeners came to be bound, for whoever started it with port 0.

use std::collections::BTreeMap;
use std::io::{self, Write as _};
use std::net::SocketAddr;
use std::path::Path;

use super::{InboundPort, OutboundService};

/// Listener → bound address. The names are those of the reference page: `admin`, `metrics`, `outbound`, `inbound`,
/// `outbound/<namespace>/<service>:<port>`, `inbound/<application's address>`; a second of the same name ends in `#2`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct BoundAddresses(BTreeMap<String, SocketAddr>);

// === impl BoundAddresses ===

impl BoundAddresses {
    /// The loopback admin listener.
    pub const ADMIN: &str = "admin";
    /// The public listener.
    pub const METRICS: &str = "metrics";
    /// The intercepting outbound listener.
    pub const OUTBOUND: &str = "outbound";
    /// The intercepting inbound listener.
    pub const INBOUND: &str = "inbound";

    /// Where questions about names are answered.
    pub const DNS: &str = "dns";

    /// The name of a service's listener.
    pub fn outbound_service(service: &OutboundService) -> String {
        format!("outbound/{}:{}", service.service, service.port)
    }

    /// The name of the listener before an application's address.
    pub fn inbound_port(port: &InboundPort) -> String {
        format!("inbound/{}", port.application)
    }

    /// Adds a listener that was bound.
    pub fn insert(&mut self, name: impl Into<String>, address: SocketAddr) {
        let name = name.into();
        let mut key = name.clone();
        let mut count = 1;
        while self.0.contains_key(&key) {
            count += 1;
            key = format!("{name}#{count}");
        }
        self.0.insert(key, address);
    }

    /// The address of the listener of that name.
    pub fn get(&self, name: &str) -> Option<SocketAddr> {
        self.0.get(name).copied()
    }

    /// The JSON object.
    pub fn to_json(&self) -> serde_json::Value {
        self.0
            .iter()
            .map(|(name, address)| (name.clone(), address.to_string().into()))
            .collect::<serde_json::Map<_, _>>()
            .into()
    }

    /// Writes the object beside `path` and moves it there, so that a reader sees all of it or nothing.
    ///
    /// # Errors
    /// Those of the file system; nothing is left behind then.
    pub fn write(&self, path: &Path) -> io::Result<()> {
        let mut temporary = path.as_os_str().to_owned();
        temporary.push(format!(".{}", std::process::id()));
        let written = (|| {
            let mut file = std::fs::File::create(&temporary)?;
            writeln!(file, "{:#}", self.to_json())?;
            file.sync_all()?;
            std::fs::rename(&temporary, path)
        })();
        if written.is_err() {
            let _ = std::fs::remove_file(&temporary);
        }
        written
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_file_is_one_object_by_listener() {
        let mut bound = BoundAddresses::default();
        bound.insert(BoundAddresses::ADMIN, "127.0.0.1:4000".parse().unwrap());
        bound.insert(BoundAddresses::OUTBOUND, "127.0.0.1:4001".parse().unwrap());
        bound.insert(BoundAddresses::OUTBOUND, "[::1]:4001".parse().unwrap());
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("addresses.json");
        bound.write(&path).unwrap();
        let read: serde_json::Value = serde_json::from_slice(&std::fs::read(&path).unwrap()).unwrap();
        assert_eq!(
            read,
            serde_json::json!({"admin": "127.0.0.1:4000", "outbound": "127.0.0.1:4001", "outbound#2": "[::1]:4001"})
        );
        assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 1, "the temporary file is gone");
    }

    #[test]
    fn a_folder_that_is_not_there_is_an_error() {
        let folder = tempfile::tempdir().unwrap();
        assert!(BoundAddresses::default().write(&folder.path().join("no/such/place")).is_err());
    }
}
