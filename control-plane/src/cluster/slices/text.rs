//! What is written into an EndpointSlice of ours, and what is taken of one.
//!
//! Decides what is believed of a slice by itself: everybody who may write EndpointSlices in a namespace can write one that looks like ours. So it
//! speaks of its own namespace only: Service, workload and identity are of it, and its name is what its content comes to. Whether the identity
//! may register for the Service, and what a Pod has to say of it, is decided by [`crate::registration`] and [`crate::index`], as of any other.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use k8s_openapi::api::discovery::v1::{Endpoint, EndpointConditions, EndpointPort, EndpointSlice};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use k8s_openapi::jiff::Timestamp;
use tulle_api::v1;
use tulle_certs::{SpiffeId, TrustDomain};

use super::book::{LEASE, Record, Slice};
use crate::cluster::{MANAGER, labels};
use crate::index::Registration;
use crate::object::{IDENTITY, Identity, NamespacedName};
use crate::registration::Part;

/// Who writes a slice, as Kubernetes has it; its own controllers leave alone what is not theirs.
pub(super) const MANAGED_BY: &str = "endpointslice.kubernetes.io/managed-by";
/// All that are not ours, as a selector.
pub const NOT_OURS: &str = "endpointslice.kubernetes.io/managed-by!=tulle-control-plane";
/// All that are, as a selector.
pub(super) const OURS: &str = "endpointslice.kubernetes.io/managed-by=tulle-control-plane";

const SERVICE_NAME: &str = "kubernetes.io/service-name";
/// The workload's name, which is in the slice's namespace.
const WORKLOAD: &str = "tulle.dev/workload";
/// `80:8080,443:8443`: the Service's ports by number, and what is dialled.
const SERVICE_PORTS: &str = "tulle.dev/service-ports";
const REGION: &str = "tulle.dev/region";
const HOLDER: &str = "tulle.dev/lease-holder";
const RENEWED: &str = "tulle.dev/lease-renewed";
const DURATION: &str = "tulle.dev/lease-duration";

/// What a lease may say that it lasts, at least and at most: a slice that nobody renews goes some day, whoever wrote it.
const SHORTEST: Duration = Duration::from_secs(10);
const LONGEST: Duration = Duration::from_secs(300);
/// As of any registration.
const MAX_PORTS: usize = 1000;

/// A part as `holder` writes it. `port_name` says what the Service calls a port, where there is one: then those read it too who know nothing of us.
pub(super) fn write(
    part: &Part,
    holder: &str,
    now: Timestamp,
    port_name: impl Fn(u16) -> Option<String>,
) -> EndpointSlice {
    let identity = format!("{}/{}", part.identity.namespace(), part.identity.service_account());
    let ports: Vec<String> = part.ports.iter().map(|(number, port)| format!("{number}:{port}")).collect();
    let mut annotations = BTreeMap::from([
        (IDENTITY, identity),
        (WORKLOAD, part.workload.name.to_string()),
        (SERVICE_PORTS, ports.join(",")),
        (HOLDER, holder.to_owned()),
        (RENEWED, now.to_string()),
        (DURATION, format!("{}s", LEASE.as_secs())),
    ]);
    if !part.region.is_empty() {
        annotations.insert(REGION, part.region.clone());
    }
    let mut marks = labels();
    marks.insert(MANAGED_BY.to_owned(), MANAGER.to_owned());
    marks.insert(SERVICE_NAME.to_owned(), part.service.to_string());
    let owned = |(name, value): (&str, String)| (name.to_owned(), value);
    EndpointSlice {
        metadata: ObjectMeta {
            name: Some(part.key.name.to_string()),
            namespace: Some(part.key.namespace.to_string()),
            labels: Some(marks),
            annotations: Some(annotations.into_iter().map(owned).collect()),
            ..ObjectMeta::default()
        },
        address_type: if part.address.is_ipv6() { "IPv6" } else { "IPv4" }.to_owned(),
        endpoints: Some(vec![Endpoint {
            addresses: vec![part.address.to_string()],
            conditions: Some(EndpointConditions {
                ready: Some(part.ready),
                serving: Some(true),
                terminating: Some(false),
            }),
            zone: Some(part.zone.clone()).filter(|zone| !zone.is_empty()),
            ..Endpoint::default()
        }]),
        ports: Some(written_ports(part, port_name)),
    }
}

/// In a slice names are unique, and at most one is empty.
fn written_ports(part: &Part, port_name: impl Fn(u16) -> Option<String>) -> Vec<EndpointPort> {
    let mut taken = BTreeSet::new();
    let ports = part.ports.iter().map(|(number, port)| {
        let mut name = port_name(*number).unwrap_or_else(|| format!("port-{number}"));
        if taken.contains(&name) {
            name = format!("port-{number}-{port}");
        }
        taken.insert(name.clone());
        EndpointPort {
            name: Some(name),
            port: Some(i32::from(*port)),
            protocol: Some("TCP".to_owned()),
            ..EndpointPort::default()
        }
    });
    ports.collect()
}

/// What is there, and what it says, if that can be believed.
pub(super) fn read(slice: &EndpointSlice, domain: &TrustDomain) -> (NamespacedName, Slice) {
    let name = NamespacedName::new(
        slice.metadata.namespace.clone().unwrap_or_default(),
        slice.metadata.name.clone().unwrap_or_default(),
    );
    let said = |annotation: &str| annotation_of(slice, annotation).unwrap_or_default();
    let duration = said(DURATION).strip_suffix('s').and_then(|seconds| seconds.parse().ok());
    let record = Record {
        holder: said(HOLDER).to_owned(),
        renewed: said(RENEWED).to_owned(),
        duration: duration.map_or(LEASE, Duration::from_secs).clamp(SHORTEST, LONGEST),
    };
    let created = slice.metadata.creation_timestamp.as_ref().map(|at| at.0.to_string());
    let slice = Slice {
        record,
        version: slice.metadata.resource_version.clone().unwrap_or_default(),
        created: created.unwrap_or_default(),
        part: read_part(&name, slice, domain).map(Arc::new),
    };
    (name, slice)
}

fn annotation_of<'s>(slice: &'s EndpointSlice, name: &str) -> Option<&'s str> {
    slice.metadata.annotations.as_ref()?.get(name).map(String::as_str)
}

/// An error says what of it is not as we write it.
fn read_part(name: &NamespacedName, slice: &EndpointSlice, domain: &TrustDomain) -> Result<Part, String> {
    let annotation =
        |name: &str| annotation_of(slice, name).ok_or_else(|| format!("it has no annotation {name}"));
    let text = annotation(IDENTITY)?;
    let account = match Identity::parse(text) {
        Some(Identity::ServiceAccount { namespace, name: account }) if *namespace == *name.namespace => {
            account
        }
        _ => return Err(format!("its identity `{text}` is none of the namespace {}", name.namespace)),
    };
    let identity = SpiffeId::new(domain, &name.namespace, &account).map_err(|error| error.to_string())?;
    let workload = annotation(WORKLOAD)?;
    let workload = NamespacedName::parse(&format!("{}/{workload}", name.namespace))
        .ok_or_else(|| format!("`{workload}` cannot be a workload"))?;
    let service = slice.metadata.labels.as_ref().and_then(|labels| labels.get(SERVICE_NAME));
    let service = service.ok_or_else(|| format!("it has no label {SERVICE_NAME}"))?;
    let endpoint = match slice.endpoints.as_deref() {
        Some([endpoint]) if endpoint.addresses.len() == 1 => endpoint,
        _ => return Err("it has not one endpoint with one address".to_owned()),
    };
    let said = v1::Registration {
        address: endpoint.addresses.concat(),
        services: vec![v1::RegisteredService {
            name: service.clone(),
            ports: read_ports(annotation(SERVICE_PORTS)?)?,
        }],
        locality: Some(v1::Locality {
            region: annotation_of(slice, REGION).unwrap_or_default().to_owned(),
            zone: endpoint.zone.clone().unwrap_or_default(),
        }),
        ready: endpoint.conditions.as_ref().and_then(|conditions| conditions.ready).unwrap_or(true),
    };
    // As if it had been said by the workload itself.
    let registration =
        Registration::read(workload, identity.as_str(), &said).map_err(|error| error.to_string())?;
    let part = match Part::of(&registration, &identity).as_slice() {
        [part] => Part::clone(part),
        _ => return Err("it has no ports".to_owned()),
    };
    if part.key != *name {
        return Err(format!("what it says would be in the EndpointSlice {}", part.key));
    }
    Ok(part)
}

fn read_ports(text: &str) -> Result<Vec<v1::RegisteredPort>, String> {
    let pair = |pair: &str| {
        let (service_port, port) = pair.split_once(':')?;
        Some(v1::RegisteredPort { service_port: service_port.parse().ok()?, port: port.parse().ok()? })
    };
    let ports: Option<Vec<v1::RegisteredPort>> = text.split(',').take(MAX_PORTS).map(pair).collect();
    ports.ok_or_else(|| format!("its {SERVICE_PORTS} `{text}` cannot be read"))
}
