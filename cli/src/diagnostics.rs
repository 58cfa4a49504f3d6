//! `tulle diagnostics endpoints`: what the control plane says of endpoints, beside what each proxy uses.
//!
//! The control plane is asked, which asks the proxies; here both are compared and shown. What is only on its way from one to the
//! other is no difference: before one is told, it is asked once more.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use http::{HeaderMap, StatusCode};
use serde::Serialize;
use tulle_control_plane::diagnostics::{Endpoint, ProxyView, Seen};
use tulle_proxy::state::{ObjectName, is_label};

use crate::http::Origin;
use crate::output::{self, Format};

const EXAMPLES: &str = "\
Examples:
  tulle diagnostics endpoints
  tulle diagnostics endpoints shop/orders
  tulle diagnostics endpoints shop/orders -o json

Exit status:
  0  every proxy uses the endpoints that the control plane says
  1  some do not, or do not answer; or there is no such Service
  2  wrong arguments";

/// The control plane waits for proxies, which is part of it.
const TIMEOUT: Duration = Duration::from_secs(5);
/// An update is on its way for no longer.
const UNDER_WAY: Duration = Duration::from_secs(1);

#[derive(Debug, clap::Subcommand)]
pub(crate) enum DiagnosticsCommand {
    /// Show the endpoints that the control plane knows beside those that each proxy uses, and where they differ.
    Endpoints(EndpointsArgs),
}

#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct EndpointsArgs {
    /// The Service, as NAMESPACE/NAME; without it every Service that a proxy uses.
    #[arg(value_name = "SERVICE", value_parser = service)]
    service: Option<ObjectName>,
    /// The metrics port of the running control plane that is asked. In a cluster: `kubectl port-forward` leads there.
    #[arg(long, value_name = "ADDRESS", default_value = "127.0.0.1:15014")]
    control_plane: SocketAddr,
    /// How to print it.
    #[arg(long, short, value_enum, default_value = "table")]
    output: Format,
}

/// What is printed.
#[derive(Debug, Default, PartialEq, Eq, Serialize)]
struct Comparison {
    /// Whether every proxy uses what the control plane says.
    equal: bool,
    services: BTreeMap<String, ServiceComparison>,
    /// Proxies that did not answer.
    silent: Vec<String>,
}

#[derive(Debug, Default, PartialEq, Eq, Serialize)]
struct ServiceComparison {
    /// Whether the control plane knows the Service.
    exists: bool,
    /// The control plane's.
    control_plane: BTreeSet<Endpoint>,
    proxies: Vec<ProxyComparison>,
}

#[derive(Debug, PartialEq, Eq, Serialize)]
struct ProxyComparison {
    proxy: String,
    identity: String,
    /// What it uses.
    endpoints: BTreeSet<Endpoint>,
    /// What the control plane says and it does not use.
    lacks: BTreeSet<Endpoint>,
    /// What it uses and the control plane does not say.
    has_besides: BTreeSet<Endpoint>,
    /// It uses more than it could tell at once: of this service not all is known.
    is_cut: bool,
}

fn service(text: &str) -> Result<ObjectName> {
    let name: ObjectName = text.parse()?;
    if !is_label(&name.namespace) || !is_label(&name.name) {
        bail!("{text:?} is not the name of a Service: lower case letters, digits, `-`");
    }
    Ok(name)
}

/// Does what is asked for.
///
/// # Errors
/// The control plane cannot be asked.
pub(crate) fn run(command: &DiagnosticsCommand) -> Result<ExitCode> {
    let DiagnosticsCommand::Endpoints(arguments) = command;
    let runtime =
        tokio::runtime::Builder::new_current_thread().enable_all().build().context("the runtime")?;
    let compared = runtime.block_on(endpoints(arguments))?;
    match arguments.output {
        Format::Json => output::print_json(&compared)?,
        Format::Table => output::print(&compared.text())?,
    }
    Ok(if compared.equal { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

async fn endpoints(arguments: &EndpointsArgs) -> Result<Comparison> {
    let origin = Origin::new(arguments.control_plane, None)?;
    let path = match &arguments.service {
        Some(service) => format!("/endpoints/{service}"),
        None => "/endpoints".to_owned(),
    };
    let compared = Comparison::of(ask(&origin, &path).await?);
    if compared.equal {
        return Ok(compared);
    }
    tokio::time::sleep(UNDER_WAY).await;
    Ok(Comparison::of(ask(&origin, &path).await?))
}

async fn ask(origin: &Origin, path: &str) -> Result<Seen> {
    let answer = origin.get(path, &HeaderMap::new(), TIMEOUT).await;
    let answer = answer.with_context(|| {
        format!("no control plane's metrics port at {} (see --control-plane)", origin.address())
    })?;
    if answer.status() != StatusCode::OK {
        let text = String::from_utf8_lossy(answer.body()).trim().to_owned();
        bail!("{} answers {path} with {}: {text}", origin.address(), answer.status());
    }
    serde_json::from_slice(answer.body()).with_context(|| {
        format!(
            "{} answers {path} with what this `tulle` does not understand; is it another version?",
            origin.address()
        )
    })
}

// === impl Comparison ===

impl Comparison {
    fn of(seen: Seen) -> Self {
        let Seen { control_plane, proxies } = seen;
        let mut compared = Self { equal: true, ..Self::default() };
        for (service, known) in control_plane {
            let exists = known.is_some();
            let users =
                proxies.iter().filter_map(|proxy| ProxyComparison::of(proxy, &service, known.as_ref()));
            let proxies: Vec<ProxyComparison> = users.collect();
            // Who uses a Service that is gone uses no endpoint of it: that is as it should be.
            compared.equal &=
                proxies.iter().all(ProxyComparison::is_equal) && (exists || !proxies.is_empty());
            let control_plane = known.unwrap_or_default();
            compared.services.insert(service, ServiceComparison { exists, control_plane, proxies });
        }
        let silent = proxies.into_iter().filter(|proxy| proxy.services.is_none());
        compared.silent = silent.map(|proxy| proxy.proxy).collect();
        compared.equal &= compared.silent.is_empty();
        compared
    }

    fn text(&self) -> String {
        let mut lines = Vec::new();
        for (name, service) in &self.services {
            lines.push(match (service.exists, service.control_plane.len()) {
                (false, _) => format!("{name}: the control plane knows no such Service"),
                (true, 0) => format!("{name}: no endpoints"),
                (true, 1) => format!("{name}: 1 endpoint"),
                (true, count) => format!("{name}: {count} endpoints"),
            });
            lines.extend(service.control_plane.iter().map(|endpoint| format!("    {}", line(endpoint))));
            let (equal, different): (Vec<_>, Vec<_>) = service.proxies.iter().partition(|one| one.is_equal());
            let equal: Vec<&str> = equal.iter().map(|one| &*one.proxy).collect();
            match (equal.is_empty(), different.is_empty()) {
                (false, _) => lines.push(format!("  = {}", equal.join(", "))),
                (true, true) => lines.push("  no proxy uses it".to_owned()),
                (true, false) => {}
            }
            for one in different {
                lines.push(format!("  ≠ {} ({})", one.proxy, one.identity));
                lines.extend(one.lacks.iter().map(|endpoint| format!("    lacks {}", line(endpoint))));
                lines.extend(one.has_besides.iter().map(|endpoint| format!("    has   {}", line(endpoint))));
                if one.is_cut {
                    lines.push("    has more than it can tell at once; name one Service".to_owned());
                }
            }
        }
        if self.services.is_empty() {
            lines.push("no proxy uses any Service".to_owned());
        }
        let silent = "no answer; it hangs, has just come or gone, or is older than this control plane";
        lines.extend(self.silent.iter().map(|proxy| format!("{proxy}: {silent}")));
        lines.join("\n")
    }
}

// === impl ProxyComparison ===

impl ProxyComparison {
    /// `None`: the proxy does not use the service, or has not answered.
    fn of(view: &ProxyView, service: &str, known: Option<&BTreeSet<Endpoint>>) -> Option<Self> {
        let services = view.services.as_ref()?;
        let endpoints = services.get(service)?.clone();
        let nothing = BTreeSet::new();
        let known = known.unwrap_or(&nothing);
        let lacks: BTreeSet<Endpoint> = known.difference(&endpoints).cloned().collect();
        Some(Self {
            proxy: view.proxy.clone(),
            identity: view.identity.clone(),
            has_besides: endpoints.difference(known).cloned().collect(),
            is_cut: view.is_cut && !lacks.is_empty(),
            lacks,
            endpoints,
        })
    }

    fn is_equal(&self) -> bool {
        self.lacks.is_empty() && self.has_besides.is_empty()
    }
}

fn line(endpoint: &Endpoint) -> String {
    let Endpoint { port, address, identity, ready } = endpoint;
    let whom = if identity.is_empty() { "in plain text" } else { identity };
    let ready = if *ready { "" } else { ", not ready" };
    format!("port {port}: {address}, {whom}{ready}")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn endpoint(address: &str) -> Endpoint {
        Endpoint { port: 8080, address: address.to_owned(), identity: String::new(), ready: true }
    }

    fn set(addresses: &[&str]) -> BTreeSet<Endpoint> {
        addresses.iter().map(|address| endpoint(address)).collect()
    }

    fn proxy(name: &str, services: Option<&[(&str, &[&str])]>) -> ProxyView {
        let services = services.map(|services| {
            services.iter().map(|(service, addresses)| ((*service).to_owned(), set(addresses))).collect()
        });
        ProxyView { proxy: name.to_owned(), identity: "spiffe://a/b".to_owned(), services, is_cut: false }
    }

    fn seen(proxies: Vec<ProxyView>) -> Seen {
        let known = [
            ("shop/orders".to_owned(), Some(set(&["10.0.0.1:80", "10.0.0.2:80"]))),
            ("shop/gone".to_owned(), None),
        ];
        Seen { control_plane: known.into(), proxies }
    }

    #[test]
    fn proxies_that_use_what_there_is_are_equal_whatever_else_they_do_not_use() {
        let both: &[&str] = &["10.0.0.2:80", "10.0.0.1:80"];
        let web = proxy("shop/web", Some(&[("shop/orders", both), ("shop/gone", &[])]));
        let compared = Comparison::of(seen(vec![web, proxy("shop/idle", Some(&[]))]));
        assert!(compared.equal, "{}", compared.text());
        let expected = "shop/gone: the control plane knows no such Service\n  = shop/web\nshop/orders: 2 endpoints\n    \
             port 8080: 10.0.0.1:80, in plain text\n    port 8080: 10.0.0.2:80, in plain text\n  = shop/web";
        assert_eq!(compared.text(), expected);
    }

    #[test]
    fn what_a_proxy_lacks_or_has_besides_is_named() {
        let web = proxy(
            "shop/web",
            Some(&[("shop/orders", &["10.0.0.2:80", "10.0.0.3:80"]), ("shop/gone", &["10.0.0.9:80"])]),
        );
        let compared = Comparison::of(seen(vec![web]));
        assert!(!compared.equal);
        let of_orders = &compared.services["shop/orders"].proxies[0];
        assert_eq!(
            (&of_orders.lacks, &of_orders.has_besides),
            (&set(&["10.0.0.1:80"]), &set(&["10.0.0.3:80"]))
        );
        let text = compared.text();
        for line in [
            "  ≠ shop/web (spiffe://a/b)",
            "    lacks port 8080: 10.0.0.1:80, in plain text",
            "    has   port 8080: 10.0.0.3:80, in plain text",
            "    has   port 8080: 10.0.0.9:80, in plain text",
        ] {
            assert!(text.lines().any(|found| found == line), "{line:?} in {text}");
        }
    }

    #[test]
    fn who_does_not_answer_and_a_service_that_nobody_knows_are_no_agreement() {
        let compared = Comparison::of(seen(vec![proxy("shop/web", None)]));
        assert_eq!((compared.equal, &*compared.silent), (false, &["shop/web".to_owned()][..]));
        let control_plane = BTreeMap::from([("shop/none".to_owned(), None)]);
        assert!(!Comparison::of(Seen { control_plane, proxies: Vec::new() }).equal);
    }
}
