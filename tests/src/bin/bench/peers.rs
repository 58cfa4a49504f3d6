//! Whom Tulle is measured beside, and how each is started: mutual TLS 1.3 with ECDSA P-256, one worker, connections kept,
//! no access log and no admin listener, which is less than Tulle does as shipped.

mod envoy;
mod given;
mod haproxy;
mod nginx;
pub(crate) mod tulle;

use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Instant;

use tulle_tests::Program;

use crate::Options;
use crate::bare::Speaks;
use crate::pair::{Pair, Purpose, Site, free_address, leashed};
use crate::pki::Side;

#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum Peer {
    /// No proxy: the client talks to the backend.
    None,
    /// As shipped: explicit ports, its own control plane, metrics and access log on.
    Tulle,
    /// hyper, tokio's current-thread runtime and rustls, nothing else.
    Bare,
    /// The same with one shared HTTP/2 connection between the proxies.
    BareH2,
    Haproxy,
    /// HAProxy with HTTP/2 between the proxies.
    HaproxyH2,
    Nginx,
    Envoy,
    /// Envoy with HTTP/2 between the proxies.
    EnvoyH2,
    #[value(name = "linkerd2-proxy")]
    Linkerd2Proxy,
    Ztunnel,
    /// Tulle once more: what differs between its two rows is noise.
    #[value(name = "tulle-again")]
    Again,
    /// Tulle without its access log: what the log costs.
    #[value(name = "tulle-silent")]
    Silent,
    /// Tulle as shipped, with traces of one request in a hundred: what the log and they cost, beside `tulle-silent`.
    #[value(name = "tulle-traced")]
    Traced,
}

// === impl Peer ===

impl Peer {
    pub(crate) fn all() -> Vec<Self> {
        <Self as clap::ValueEnum>::value_variants().to_vec()
    }

    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::None => "no proxy",
            Self::Tulle => "Tulle",
            Self::Again => "Tulle once more",
            Self::Silent => "Tulle, no log",
            Self::Traced => "Tulle, log and traces",
            Self::Bare => "bare",
            Self::BareH2 => "bare, HTTP/2 leg",
            Self::Haproxy => "HAProxy",
            Self::HaproxyH2 => "HAProxy, HTTP/2 leg",
            Self::Nginx => "nginx",
            Self::Envoy => "Envoy",
            Self::EnvoyH2 => "Envoy, HTTP/2 leg",
            Self::Linkerd2Proxy => "linkerd2-proxy",
            Self::Ztunnel => "ztunnel",
        }
    }

    /// What it calls itself, or why it cannot be measured here.
    pub(crate) fn version(self, options: &Options) -> Result<String, String> {
        match self {
            Self::None => Ok(String::new()),
            Self::Tulle | Self::Again | Self::Silent | Self::Traced => {
                says(&tulle_tests::binary("tulle-proxy"), "--version")
            }
            Self::Bare | Self::BareH2 => Ok("hyper, tokio, rustls of this build".to_owned()),
            Self::Haproxy | Self::HaproxyH2 => says(&options.haproxy, "-v"),
            Self::Nginx => says(&options.nginx, "-v"),
            Self::Envoy | Self::EnvoyH2 => says(&options.envoy, "--version"),
            Self::Linkerd2Proxy => given(options.linkerd2_proxy.as_deref(), "--linkerd2-proxy")
                .and_then(|path| says(path, "--version")),
            Self::Ztunnel => {
                given(options.ztunnel.as_deref(), "--ztunnel").and_then(|path| says(path, "--version"))
            }
        }
    }

    /// Why it has no figures for a purpose, if it has none.
    pub(crate) fn lacks(self, purpose: Purpose) -> Option<&'static str> {
        match (self, purpose.speaks) {
            (Self::Nginx, Speaks::Http2) => Some("proxies HTTP/2 to no server"),
            (Self::BareH2 | Self::HaproxyH2 | Self::EnvoyH2, Speaks::Http2 | Speaks::Tcp) => {
                Some("the same as without")
            }
            (Self::Bare | Self::BareH2 | Self::Linkerd2Proxy | Self::Ztunnel, _) if purpose.routes > 0 => {
                Some("has no routes")
            }
            _ if purpose.rules > 0
                && !matches!(self, Self::None | Self::Tulle | Self::Again | Self::Silent | Self::Traced) =>
            {
                Some("is given no rules")
            }
            _ => None,
        }
    }

    /// A proxy of Tulle's as this one of them has it.
    pub(crate) fn set(self, program: Program, site: &Site) -> Program {
        match self {
            Self::Silent => tulle::silent(program),
            Self::Traced => tulle::traced(program, site),
            _ => program,
        }
    }

    pub(crate) async fn start(
        self,
        purpose: Purpose,
        site: &Site,
        options: &Options,
    ) -> Result<Pair, String> {
        let begun = Instant::now();
        let mut pair = match self {
            Self::None => Pair::new(site.backend(purpose.speaks), None, ()),
            Self::Tulle | Self::Again | Self::Silent | Self::Traced => {
                tulle::start(purpose, site, |program| leashed(self.set(program, site))).await
            }
            Self::Bare => bare(purpose, purpose.speaks, site),
            Self::BareH2 => bare(purpose, Speaks::Http2, site),
            Self::Haproxy => haproxy::start(purpose, purpose.speaks, site, options),
            Self::HaproxyH2 => haproxy::start(purpose, Speaks::Http2, site, options),
            Self::Nginx => nginx::start(purpose, site, options),
            Self::Envoy => envoy::start(purpose, purpose.speaks, site, options),
            Self::EnvoyH2 => envoy::start(purpose, Speaks::Http2, site, options),
            Self::Linkerd2Proxy => {
                let executable = given(options.linkerd2_proxy.as_deref(), "--linkerd2-proxy")?;
                given::start("linkerd2-proxy", executable, purpose, site).await?
            }
            Self::Ztunnel => {
                let executable = given(options.ztunnel.as_deref(), "--ztunnel")?;
                given::start("ztunnel", executable, purpose, site).await?
            }
        };
        pair.forwards(purpose.speaks).await.map_err(|error| format!("{}: {error}", self.name()))?;
        pair.ready.get_or_insert_with(|| begun.elapsed());
        Ok(pair)
    }
}

/// The first line that a program says with `argument`.
fn says(program: &Path, argument: &str) -> Result<String, String> {
    let output = Command::new(program).arg(argument).stdin(Stdio::null()).output();
    let output = output.map_err(|error| format!("{}: {error}", program.display()))?;
    let text = [output.stdout, output.stderr].concat();
    let text = String::from_utf8_lossy(&text).into_owned();
    let line = text.lines().find(|line| !line.trim().is_empty()).unwrap_or_default().trim();
    // Some begin with their own path.
    Ok(line.strip_prefix(&*program.to_string_lossy()).unwrap_or(line).trim().to_owned())
}

fn given<'a>(path: Option<&'a Path>, flag: &str) -> Result<&'a Path, String> {
    path.ok_or_else(|| format!("no {flag} was given"))
}

fn bare(purpose: Purpose, leg: Speaks, site: &Site) -> Pair {
    let (front, between) = (free_address(), free_address());
    let half = |side: Side, listen, to: std::net::SocketAddr, from_speaks: Speaks, to_speaks: Speaks| {
        let own = std::env::current_exe().expect("this program");
        let program = Program::new(format!("bare-{}", side.name()), own)
            .arg("bare")
            .flag("--side", side.name())
            .flag("--listen", std::net::SocketAddr::to_string(&listen))
            .flag("--to", to.to_string())
            .flag("--from-speaks", from_speaks.name())
            .flag("--to-speaks", to_speaks.name())
            .flag("--pki", site.pki.folder());
        site.start(program)
    };
    let outbound = half(Side::Outbound, front, between, purpose.speaks, leg);
    let inbound = half(Side::Inbound, between, site.backend(purpose.speaks), leg, purpose.speaks);
    Pair::of(front, [outbound, inbound])
}
