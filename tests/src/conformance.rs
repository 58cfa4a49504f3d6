//! What the Gateway API's conformance suite asks of a mesh, as tables: routes, requests, who answers and what is seen.
//!
//! The cases have the names of the suite's tests (`conformance/tests/mesh`); they are written anew. A world that
//! runs them has the Services [`SERVICES`], `echo-v1` and `echo-v2` behind those of their own name and both behind `echo`,
//! and a client in each of [`CLIENTS`]; it calls [`run`] with what dials from there.

mod tables;

use std::collections::BTreeMap;
use std::fmt::Write as _;

use tokio::net::TcpStream;

use crate::echo::{self, Answer};
use crate::{NAMESPACE, World, eventually};

pub use self::tables::CASES;

/// Every one of them has all of [`PORTS`].
pub const SERVICES: [&str; 3] = ["echo", "echo-v1", "echo-v2"];
/// Number, name, protocol, and where the applications listen.
pub const PORTS: [(u16, &str, &str, u16); 3] =
    [(80, "http", "http", 8080), (8080, "alt", "http", 8080), (GRPC, "grpc", "kubernetes.io/h2c", 7070)];
/// Where the client is that is meant if none is named, and the other one's namespace.
pub const CLIENTS: [&str; 2] = [NAMESPACE, "consumer"];
/// The port that speaks gRPC.
const GRPC: u16 = 7070;
/// How many requests tell how they are divided.
const DIVIDED: usize = 200;

/// One test of the suite.
#[derive(Debug)]
pub struct Case {
    /// The suite's short name.
    pub name: &'static str,
    routes: &'static [Route],
    asks: &'static [Ask],
}

/// A route.
#[derive(Debug)]
struct Route {
    kind: &'static str,
    namespace: &'static str,
    /// The fields of its parent, beside that it is a Service.
    parent: &'static str,
    rules: &'static str,
}

/// One request, or many if `expected` divides them.
#[derive(Debug)]
struct Ask {
    /// One of [`CLIENTS`].
    from: &'static str,
    /// `<service>:<port>`, or `pod <service>:<port>` for an endpoint's own address.
    to: &'static str,
    /// As [`echo::ask`] takes it.
    asked: &'static str,
    /// Who answers (or the status, with the proxy's reason: `404:route_not_found`), then what must hold besides: `name=value` of the answer, `>name=value` of the request as
    /// the application saw it, `@target=…` and `@host=…` likewise; `-` is not there. Or shares of a hundred: `echo-v1*70 echo-v2*30`.
    expected: &'static str,
}

/// Runs one case: its routes, until a pass over all that it asks finds everything right, and once more from then on.
///
/// `dial` is called with a client's namespace and where it dials, and gives none where the world cannot dial so.
///
/// # Panics
/// If something stays wrong.
pub async fn run(case: &Case, world: &World, dial: impl AsyncFn(&str, &str) -> Option<TcpStream>) {
    let routes = case.routes.iter().enumerate().map(|(number, route)| route.yaml(number));
    world.yaml("conformance.yaml", &routes.collect::<String>());
    let pass = async || {
        let mut wrong = String::new();
        for ask in case.asks {
            if let Err(why) = ask.go(&dial).await {
                writeln!(wrong, "{} → {}: {why}, expected {}", ask.to, ask.asked, ask.expected).unwrap();
            }
        }
        if wrong.is_empty() { Ok(()) } else { Err(wrong) }
    };
    // Twice in a row: the first may be right while the routes of the case before are still in force.
    eventually(case.name, async || {
        pass().await?;
        pass().await
    })
    .await;
}

// === impl Route ===

impl Route {
    fn yaml(&self, number: usize) -> String {
        let Self { kind, namespace, parent, rules } = self;
        let rules = rules.replace('\n', "\n  ");
        format!(
            "---\napiVersion: gateway.networking.k8s.io/v1\nkind: {kind}\nmetadata: {{name: r{number}, namespace: {namespace}}}\n\
             spec:\n  parentRefs: [{{group: '', kind: Service, {parent}}}]\n  rules:{rules}\n"
        )
    }
}

// === impl Ask ===

impl Ask {
    async fn go(&self, dial: &impl AsyncFn(&str, &str) -> Option<TcpStream>) -> Result<(), String> {
        if !self.expected.contains('*') {
            return match self.ask(dial).await {
                Some(answer) => self.judge(&answer),
                None => Ok(()),
            };
        }
        let mut came: BTreeMap<String, usize> = BTreeMap::new();
        for _ in 0..DIVIDED {
            let Some(answer) = self.ask(dial).await else { return Ok(()) };
            *came.entry(answer.by()).or_default() += 1;
        }
        for part in self.expected.split(' ') {
            let (who, share) = part.split_once('*').unwrap();
            let share = share.parse::<f64>().unwrap() / 100.0;
            let (all, seen) = (DIVIDED as f64, came.remove(who).unwrap_or_default() as f64);
            // Binomial: five standard deviations.
            if (seen - all * share).abs() > 5.0 * (all * share * (1.0 - share)).sqrt() {
                return Err(format!("{who} answered {seen} times of {all}"));
            }
        }
        if came.is_empty() { Ok(()) } else { Err(format!("besides, {came:?}")) }
    }

    async fn ask(&self, dial: &impl AsyncFn(&str, &str) -> Option<TcpStream>) -> Option<Answer> {
        let stream = dial(self.from, self.to).await?;
        let to = self.to.trim_start_matches("pod ");
        let (name, port) = to.rsplit_once(':').unwrap();
        let host = if port == "80" { name } else { to };
        Some(echo::ask(stream, port == GRPC.to_string(), host, self.asked).await)
    }

    fn judge(&self, answer: &Answer) -> Result<(), String> {
        let mut words = self.expected.split(' ');
        let by = answer.by().replace(' ', ":");
        if Some(&*by) != words.next() {
            return Err(by);
        }
        for word in words {
            let (name, value) = word.split_once('=').unwrap();
            let seen = match (name.strip_prefix('>'), name.strip_prefix('@')) {
                (Some(name), _) => answer.saw_field(name).to_owned(),
                (_, Some(what)) => answer.saw(what).to_owned(),
                (None, None) => answer.field(name),
            };
            if seen != value {
                return Err(format!("{name} is {seen}"));
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Those of its profiles MESH-HTTP and MESH-GRPC; what the suite has besides is in the tables of our own.
    const SUITE: [&str; 22] = [
        "MeshBasic",
        "MeshTrafficSplit",
        "MeshPorts",
        "MeshFrontend",
        "MeshFrontendHostname",
        "MeshConsumerRoute",
        "MeshHTTPRouteSimpleSameNamespace",
        "MeshHTTPRouteMatching",
        "MeshHTTPRouteQueryParamMatching",
        "MeshHTTPRouteWeight",
        "MeshHTTPRouteNamedRule",
        "MeshHTTPRouteRequestHeaderModifier",
        "MeshHTTPRouteRewritePath",
        "MeshHTTPRouteRedirectHostAndStatus",
        "MeshHTTPRouteRedirectPath",
        "MeshHTTPRouteRedirectPort",
        "MeshHTTPRouteSchemeRedirect",
        "MeshHTTPRoute303Redirect",
        "MeshHTTPRoute307Redirect",
        "MeshHTTPRoute308Redirect",
        "MeshGRPCRouteWeight",
        "MeshGRPCRouteRequestHeaderModifier",
    ];

    #[test]
    fn no_test_of_the_suite_is_forgotten() {
        let named: Vec<_> = CASES.iter().map(|case| case.name).collect();
        let missing: Vec<_> = SUITE.iter().filter(|name| !named.contains(name)).collect();
        assert!(missing.is_empty(), "{missing:?}");
        for case in CASES {
            assert!(!case.asks.is_empty(), "{} asks nothing", case.name);
            assert_eq!(
                named.iter().filter(|name| **name == case.name).count(),
                1,
                "{} is there twice",
                case.name
            );
        }
    }
}
