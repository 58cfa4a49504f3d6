//! The resources that proxies are served, from a running control plane or made of a folder by the control plane's own code,
//! and decoded by the proxy's.

use std::net::{IpAddr, SocketAddr};
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};
use http::{HeaderMap, StatusCode};
use tulle_api::ResourceType;
use tulle_control_plane::finding::Severity;
use tulle_control_plane::index::Index;
use tulle_control_plane::model::{Model, Settings};
use tulle_control_plane::source::Folder;
use tulle_proxy::control::decode::{self, Decoded};
use tulle_proxy::policy::Inbound;
use tulle_proxy::route::Table;
use tulle_proxy::state::{AddressInfo, EndpointInfo, ObjectName, ServiceInfo, WorkloadInfo};

use crate::http::Origin;

const TIMEOUT: Duration = Duration::from_secs(5);

/// What the control plane serves.
pub(super) enum Mesh {
    Folder(Box<Model>),
    ControlPlane { runtime: tokio::runtime::Runtime, origin: Origin },
}

// === impl Mesh ===

impl Mesh {
    /// Of a folder, as it would be served.
    ///
    /// # Errors
    /// It cannot be read.
    pub(super) fn of_folder(dir: &Path) -> Result<Self> {
        let (_, read) = Folder::open(dir).with_context(|| format!("--config-dir {}", dir.display()))?;
        let mut index = Index::default();
        index.change(read.changes);
        if let Some(finding) = read.findings.iter().find(|finding| finding.severity == Severity::Error) {
            eprintln!(
                "tulle: {finding}\ntulle: what is wrong is not served, nor explained; see `tulle check --config-dir {}`",
                dir.display()
            );
        }
        Ok(Self::Folder(Box::new(Model::build(&index, Settings::default()))))
    }

    /// Of the control plane whose metrics port this is.
    ///
    /// # Errors
    /// Those of the runtime; that nobody is there is told when something is asked.
    pub(super) fn of_control_plane(address: SocketAddr) -> Result<Self> {
        let runtime =
            tokio::runtime::Builder::new_current_thread().enable_all().build().context("the runtime")?;
        Ok(Self::ControlPlane { runtime, origin: Origin::new(address, None)? })
    }

    /// Whether nobody is known who joins while a control plane runs.
    pub(super) fn is_folder(&self) -> bool {
        matches!(self, Self::Folder(_))
    }

    pub(super) fn address(&self, ip: IpAddr) -> Result<Option<AddressInfo>> {
        let decoded = self.get(ResourceType::Address, &ip.to_canonical().to_string())?;
        Ok(decoded.and_then(|decoded| if let Decoded::Address(it) = decoded { Some(it) } else { None }))
    }

    pub(super) fn service(&self, name: &ObjectName) -> Result<Option<ServiceInfo>> {
        let decoded = self.get(ResourceType::Service, &name.to_string())?;
        Ok(decoded.and_then(|decoded| if let Decoded::Service(it) = decoded { Some(it) } else { None }))
    }

    pub(super) fn workload(&self, name: &ObjectName) -> Result<Option<WorkloadInfo>> {
        let decoded = self.get(ResourceType::Workload, &name.to_string())?;
        Ok(decoded.and_then(|decoded| if let Decoded::Workload(it) = decoded { Some(it) } else { None }))
    }

    pub(super) fn endpoints(&self, service: &ObjectName) -> Result<Vec<EndpointInfo>> {
        Ok(match self.get(ResourceType::Endpoints, &service.to_string())? {
            Some(Decoded::Endpoints(it)) => it.endpoints,
            _ => Vec::new(),
        })
    }

    /// As clients of `namespace` follow them.
    pub(super) fn routes(&self, namespace: &str, service: &ObjectName) -> Result<Option<Table>> {
        let decoded = self.get(ResourceType::Routes, &format!("{namespace}/{service}"))?;
        Ok(decoded
            .and_then(|decoded| if let Decoded::Routes(it) = decoded { Some(Table::new(it)) } else { None }))
    }

    pub(super) fn inbound(&self, workload: &ObjectName) -> Result<Option<Inbound>> {
        let decoded = self.get(ResourceType::InboundPolicy, &workload.to_string())?;
        Ok(decoded.and_then(|decoded| {
            if let Decoded::InboundPolicy(it) = decoded {
                Some(Inbound::new(*it, Instant::now()))
            } else {
                None
            }
        }))
    }

    fn get(&self, kind: ResourceType, name: &str) -> Result<Option<Decoded>> {
        let bytes = match self {
            Self::Folder(model) => model.get(kind, name).map(|resource| resource.bytes.clone()),
            Self::ControlPlane { runtime, origin } => runtime.block_on(ask(origin, kind, name))?,
        };
        let Some(bytes) = bytes else { return Ok(None) };
        let decoded = decode::decode(kind.type_url(), name, &bytes);
        decoded.map(Some).map_err(|fault| {
            let at = if fault.field.is_empty() { String::new() } else { format!("{}: ", fault.field) };
            anyhow::anyhow!(
                "no proxy takes the {} {}: {at}{} (are `tulle` and the control plane of the same version?)",
                kind.as_str(),
                fault.resource,
                fault.reason
            )
        })
    }
}

async fn ask(origin: &Origin, kind: ResourceType, name: &str) -> Result<Option<bytes::Bytes>> {
    let path = format!("/resources/{}/{name}", kind.as_str());
    let answer = origin.get(&path, &HeaderMap::new(), TIMEOUT).await.with_context(|| {
        format!(
            "no control plane's metrics port at {} (see --control-plane and --config-dir)",
            origin.address()
        )
    })?;
    let text = || String::from_utf8_lossy(answer.body()).trim().to_owned();
    match answer.status() {
        StatusCode::OK => Ok(Some(answer.into_body())),
        StatusCode::NO_CONTENT => Ok(None),
        status => bail!("{} answers {path} with {status}: {}", origin.address(), text()),
    }
}
