//! `tulle explain`: what would become of a request, and why, without sending it; or what a reason means ([`reason`]).
//!
//! The resources are those that the control plane serves ([`mesh`]); decoding, matching, choosing and judging are the proxy's
//! own code, run on them, so that what is printed cannot differ from what is done. Here is only the order of the questions,
//! which is `forward/outbound.rs`'s, and how the answers are shown ([`text`]).

mod answer;
mod mesh;
mod reason;
mod routes;
mod text;
mod told;

use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{Context as _, Result, anyhow, bail};
use http::{HeaderMap, HeaderName, HeaderValue, Method, Uri, header};
use tulle_certs::SpiffeId;
use tulle_proxy::state::{AddressTarget, ObjectName, Protocol, ServiceInfo, is_label};
use tulle_proxy::telemetry::Reason;

use self::answer::{Answer, From, To};
use self::mesh::Mesh;
use crate::output::{self, Format};

const EXAMPLES: &str = "\
Examples:
  tulle explain --from shop/web --to http://orders:8080/v2/items -H 'x-group: b'
  tulle explain --config-dir mesh/ --from shop/web --to http://orders.billing/ -X DELETE -o json
  tulle explain no_healthy_endpoint

Of a request it says which rule of which route takes the request and why the others do not, what its filters do, which backends share
it, its timeouts, and who among the backends' workloads lets it in. Nothing is sent to any of them.

Of a reason, the `x-tulle-error` of an answer, it says what it means and what to do.

Exit status:
  0  such requests would be served, or answered by a redirect; or a reason was explained
  1  some of them or all would get an error of a proxy, or it cannot be told
  2  wrong arguments";

#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct ExplainArgs {
    /// A reason, as in `x-tulle-error`, in metrics and in the access log: what it means, and what to do.
    #[arg(value_name = "REASON", value_parser = reason::parse, conflicts_with_all = ["from", "to", "config_dir"])]
    reason: Option<Reason>,
    /// Who asks: the workload, as NAMESPACE/NAME.
    #[arg(long, value_name = "WORKLOAD", value_parser = workload, required_unless_present = "reason")]
    from: Option<ObjectName>,
    /// Whom it has proven to be, where the control plane does not know the workload (yet): its SPIFFE ID.
    #[arg(long, value_name = "SPIFFE-ID")]
    identity: Option<SpiffeId>,
    /// What it asks for, as the application says it: `http://SERVICE[.NAMESPACE][:PORT]/PATH?QUERY`.
    #[arg(long, value_name = "URL", value_parser = url, required_unless_present = "reason")]
    to: Option<Uri>,
    /// The request's method.
    #[arg(long, short = 'X', default_value = "GET", value_parser = method)]
    method: Method,
    /// A header field of the request, as `NAME: VALUE`; may be given several times.
    #[arg(long, short = 'H', value_name = "FIELD", value_parser = field)]
    header: Vec<(HeaderName, HeaderValue)>,
    /// The metrics port of the running control plane that is asked. In a cluster: `kubectl port-forward` leads there.
    #[arg(long, value_name = "ADDRESS", default_value = "127.0.0.1:15014", conflicts_with = "config_dir")]
    control_plane: SocketAddr,
    /// What the full names of services end in, after `svc`: the proxies' TULLE_PROXY_CLUSTER_DOMAIN.
    #[arg(long, value_name = "DOMAIN", default_value = "cluster.local")]
    cluster_domain: String,
    /// A folder of YAML in place of a running control plane. Workloads that join by a token are not known then.
    #[arg(long, value_name = "DIR")]
    config_dir: Option<PathBuf>,
    /// How to print it.
    #[arg(long, short, value_enum, default_value = "table")]
    output: Format,
}

/// What becomes of what request is asked.
struct Question<'a> {
    from: &'a ObjectName,
    to: &'a Uri,
    more: &'a ExplainArgs,
}

/// What is asked, as the proxy would see it.
struct Asking {
    from: From,
    method: Method,
    uri: Uri,
    /// `Host` among them.
    headers: HeaderMap,
}

fn workload(text: &str) -> Result<ObjectName> {
    let name: ObjectName = text.parse()?;
    // Pods' names may have dots (RFC 1123 §2.1).
    if !is_label(&name.namespace) || !name.name.split('.').all(is_label) {
        bail!("{text:?} is not the name of a workload: lower case letters, digits, `-`");
    }
    Ok(name)
}

fn field(text: &str) -> Result<(HeaderName, HeaderValue)> {
    let (name, value) = text.split_once(':').context("expected `NAME: VALUE`")?;
    let name =
        name.trim().parse().with_context(|| format!("{:?} is no name of a header field", name.trim()))?;
    let value = value.trim().parse().with_context(|| format!("{value:?} is no value of a header field"))?;
    Ok((name, value))
}

fn url(text: &str) -> Result<Uri> {
    let url: Uri = text.parse()?;
    port(&url)?;
    match url.scheme_str() {
        Some("http") => Ok(url),
        Some("https") => bail!(
            "https is between the application and whom it calls, and passes through the proxies unread; what a proxy routes is http://"
        ),
        _ => bail!("expected http://HOST[:PORT]/PATH"),
    }
}

/// The port that a URL leads to.
fn port(url: &Uri) -> Result<u16> {
    let authority = url.authority().context("the URL names no host")?;
    let written = authority.as_str().rsplit_once('@').map_or(authority.as_str(), |(_, host)| host);
    match (authority.port_u16(), written.len() == authority.host().len()) {
        (Some(port @ 1..), _) => Ok(port),
        (None, true) => Ok(80),
        (Some(0) | None, _) => bail!("{written} has no port between 1 and 65535"),
    }
}

fn method(text: &str) -> Result<Method> {
    let method: Method = text.parse()?;
    if method == Method::CONNECT {
        bail!("CONNECT asks for a connection, not for what is at a URL");
    }
    Ok(method)
}

/// Explains and prints.
///
/// # Errors
/// The folder or the control plane cannot be read, or it does not know whom the request is for.
pub(crate) fn run(arguments: &ExplainArgs) -> Result<ExitCode> {
    if let Some(reason) = arguments.reason {
        reason::print(reason, arguments.output)?;
        return Ok(ExitCode::SUCCESS);
    }
    let mesh = match &arguments.config_dir {
        Some(dir) => Mesh::of_folder(dir)?,
        None => Mesh::of_control_plane(arguments.control_plane)?,
    };
    let answer = explain(&mesh, &arguments.question()?)?;
    match arguments.output {
        Format::Json => output::print_json(&answer)?,
        Format::Table => output::print(&text::lines(&answer))?,
    }
    let good = !answer.some_fail && !answer.cannot_tell;
    Ok(if good { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

fn explain(mesh: &Mesh, question: &Question<'_>) -> Result<Answer> {
    let (host, port) = (question.to.host().unwrap_or_default(), port(question.to)?);
    let service = service(mesh, question, host, port)?;
    let mut notes = Vec::new();
    let declared = service.port(port).map(|port| port.protocol);
    if declared.is_none() {
        let ports: Vec<String> = service.ports.iter().map(|port| port.port.to_string()).collect();
        let it_has = if ports.is_empty() { "none".to_owned() } else { ports.join(", ") };
        notes.push(format!("Service {} declares no port {port}; it has {it_has}", service.name));
    }
    if service.addresses.is_empty() {
        let why = "no address of its own: where connections are intercepted, those to its name go to the pods' addresses, by no route";
        notes.push(format!("Service {} has {why}", service.name));
    }
    let protocol = declared.unwrap_or(Protocol::Detect);
    if matches!(protocol, Protocol::Tcp | Protocol::Tls) {
        bail!(
            "--to: port {port} of Service {} is declared to speak {}, whose bytes are relayed as they are",
            service.name,
            answer::protocol(protocol)
        );
    }
    let (asking, unsaid) = Asking::new(mesh, question)?;
    notes.extend(unsaid);
    let to = To { service: service.name.to_string(), port, protocol: answer::protocol(protocol) };
    let answer = routes::explain(mesh, &asking, &service, to)?;
    Ok(Answer { notes, ..answer })
}

/// Whom a host name or address is of.
fn service(mesh: &Mesh, question: &Question<'_>, host: &str, port: u16) -> Result<ServiceInfo> {
    let namespace = &question.from.namespace;
    let address: Option<IpAddr> = host.trim_start_matches('[').trim_end_matches(']').parse().ok();
    let name = match address {
        Some(ip) => match mesh.address(ip)?.map(|address| address.target) {
            Some(AddressTarget::Service(name)) => name,
            Some(AddressTarget::Host(_)) => bail!(
                "--to: {ip} is a workload's own address: requests to it go there, by no route; name its Service"
            ),
            None => bail!("--to: {ip} is no address of the mesh: requests to it leave it, by no route"),
        },
        None => tulle_proxy::dns::service_named(host, namespace, &question.more.cluster_domain)
            .with_context(|| {
                format!("--to: {host} is no name of a Service: requests to it leave the mesh, by no route")
            })?,
    };
    mesh.service(&name)?.ok_or_else(|| {
        anyhow!(
            "--to: there is no Service {name} (is {host}:{port} what the application in {namespace} calls?)"
        )
    })
}

// === impl ExplainArgs ===

impl ExplainArgs {
    fn question(&self) -> Result<Question<'_>> {
        let from = self.from.as_ref().context("--from: who asks?")?;
        let to = self.to.as_ref().context("--to: for what?")?;
        Ok(Question { from, to, more: self })
    }
}

// === impl Asking ===

impl Asking {
    /// And what is to be known of it.
    fn new(mesh: &Mesh, question: &Question<'_>) -> Result<(Self, Vec<String>)> {
        let mut notes = Vec::new();
        let known = mesh.workload(question.from)?.map(|workload| workload.id);
        if known.is_none() && !mesh.is_folder() {
            notes.push(format!("the control plane knows no workload {}", question.from));
        }
        let identity = known.or_else(|| question.more.identity.clone());
        if let (Some(known), Some(given)) = (&identity, &question.more.identity)
            && known != given
        {
            bail!("--identity: the workload {} has proven to be {known}", question.from);
        }
        let mut headers = HeaderMap::new();
        for (name, value) in &question.more.header {
            if name.as_str().starts_with("x-tulle-") {
                notes.push(format!(
                    "{name} is the proxies' own: what an application says in it is taken away"
                ));
            } else {
                headers.append(name, value.clone());
            }
        }
        if !headers.contains_key(header::HOST) {
            headers.insert(header::HOST, host(question.to).context("--to: the host")?);
        }
        let from = From { workload: question.from.clone(), identity };
        Ok((Self { from, method: question.more.method.clone(), uri: question.to.clone(), headers }, notes))
    }
}

/// As clients say it: without a user's name, and without the port that is usual.
fn host(url: &Uri) -> Result<HeaderValue> {
    let host = url.host().unwrap_or_default();
    let port = url.port_u16().filter(|port| *port != 80);
    let text = port.map_or_else(|| host.to_owned(), |port| format!("{host}:{port}"));
    Ok(HeaderValue::from_str(&text)?)
}

#[cfg(test)]
mod tests;
