//! Policies for people and programs that ask: what is in force ([`in_force`]), and what would become of a request ([`Question`]).
//!
//! Pure: JSON, with the names that policies are written by. Called by `app` for the admin listener's `/authz`.

use std::net::{IpAddr, Ipv4Addr};

use http::{HeaderMap, HeaderName, HeaderValue, Method, Uri};
use serde_json::{Map, Value, json};
use tulle_certs::{SpiffeId, TrustDomain};

use super::access::{AccessPolicy, AccessRule, Condition, Operation, RouteScope, Source, Subject};
use super::claims::Claims;
use super::external::ExternalSpec;
use super::inbound::{Connection, Denial, Inbound, Judged, TlsKind, Verdict};
use super::rules::Requested;
use crate::route::Asked;
use crate::state::Mode;
use crate::token::AuthenticationSpec;

/// Whether something would be let in, and by which rule.
#[derive(Debug)]
pub struct Question {
    port: u16,
    identity: Option<SpiffeId>,
    client: IpAddr,
    asks: Option<Asks>,
}

/// A request; `None` of it: bytes that are no HTTP.
#[derive(Debug)]
struct Asks {
    method: Method,
    target: Uri,
    host: String,
    headers: HeaderMap,
    claims: Option<Claims>,
}

/// The policies in force, and what is said where none speaks.
pub fn in_force(policy: &Inbound) -> Value {
    let spec = policy.spec();
    let legacy: Vec<_>;
    let policies = match &*spec.policies {
        [] => {
            let rules = spec.rules.iter();
            legacy = rules
                .map(|rule| AccessPolicy::allowing(&rule.name, &rule.ports, &rule.identities))
                .collect::<Vec<_>>();
            &legacy
        }
        _ => &spec.policies,
    };
    let ports = spec.ports.iter().map(|(port, said)| (port.to_string(), mode(said.mode).into()));
    json!({
        "workload": spec.workload.to_string(),
        "mtls": mode(spec.mode),
        "portsMtls": ports.collect::<Map<_, _>>(),
        "policies": policies.iter().map(shown).collect::<Vec<_>>(),
        "tokens": spec.authentications.iter().map(tokens).collect::<Vec<_>>(),
        "authorizers": spec.external.iter().map(authorizer).collect::<Vec<_>>(),
        "default": {
            "networks": texts(&spec.unspoken.networks),
            "audited": spec.unspoken.audited,
        },
    })
}

const fn mode(mode: Mode) -> &'static str {
    match mode {
        Mode::Strict => "strict",
        Mode::Permissive => "permissive",
        Mode::Off => "off",
    }
}

/// Whose tokens requests may carry.
fn tokens(policy: &AuthenticationSpec) -> Value {
    json!({
        "name": &*policy.name,
        "dryRun": policy.dry_run,
        "ports": policy.ports,
        "routes": routes(&policy.routes),
        "required": policy.required,
        "issuers": policy.issuers.iter().map(|issuer| &*issuer.issuer).collect::<Vec<_>>(),
    })
}

/// Who else is asked.
fn authorizer(policy: &ExternalSpec) -> Value {
    json!({
        "name": &*policy.name,
        "dryRun": policy.dry_run,
        "ports": policy.ports,
        "notPorts": policy.not_ports,
        "routes": routes(&policy.routes),
        "service": format!("{}:{}", policy.service, policy.service_port),
        "failureAllows": policy.failure_allows,
        "invalid": policy.invalid.as_deref(),
    })
}

fn routes(scopes: &[RouteScope]) -> Vec<Value> {
    let routes = scopes.iter().map(|scope| {
        let matches = scope.matches.iter().map(|one| format!("{one:?}"));
        json!({ "hostnames": texts(&scope.hostnames), "matches": matches.collect::<Vec<_>>() })
    });
    routes.collect()
}

fn shown(policy: &AccessPolicy) -> Value {
    json!({
        "name": &*policy.name,
        "action": policy.action.as_str(),
        "dryRun": policy.dry_run,
        "ports": policy.ports,
        "routes": routes(&policy.routes),
        "rules": policy.rules.iter().map(rule).collect::<Vec<_>>(),
    })
}

fn rule(rule: &AccessRule) -> Value {
    json!({
        "name": &*rule.name,
        "from": rule.from.iter().map(source).collect::<Vec<_>>(),
        "to": rule.to.iter().map(operation).collect::<Vec<_>>(),
        "when": rule.when.iter().map(condition).collect::<Vec<_>>(),
    })
}

fn texts<T: ToString>(all: &[T]) -> Vec<String> {
    all.iter().map(ToString::to_string).collect()
}

/// What is said of these; what is empty is left out.
fn said<const N: usize>(fields: [(&str, Vec<String>); N]) -> Value {
    let fields = fields.into_iter().filter(|(_, all)| !all.is_empty());
    fields.map(|(name, all)| (name.to_owned(), Value::from(all))).collect::<Map<_, _>>().into()
}

fn source(source: &Source) -> Value {
    let mut identities = texts(&source.identities);
    if source.any_identity {
        identities.insert(0, "*".to_owned());
    }
    said([
        ("identities", identities),
        ("notIdentities", texts(&source.not_identities)),
        ("namespaces", texts(&source.namespaces)),
        ("notNamespaces", texts(&source.not_namespaces)),
        ("serviceAccounts", texts(&source.service_accounts)),
        ("notServiceAccounts", texts(&source.not_service_accounts)),
        ("networks", texts(&source.networks)),
        ("notNetworks", texts(&source.not_networks)),
        ("requestPrincipals", texts(&source.request_principals)),
        ("notRequestPrincipals", texts(&source.not_request_principals)),
    ])
}

fn operation(operation: &Operation) -> Value {
    said([
        ("ports", texts(&operation.ports)),
        ("notPorts", texts(&operation.not_ports)),
        ("hosts", texts(&operation.hosts)),
        ("notHosts", texts(&operation.not_hosts)),
        ("methods", texts(&operation.methods)),
        ("notMethods", texts(&operation.not_methods)),
        ("paths", texts(&operation.paths)),
        ("notPaths", texts(&operation.not_paths)),
        ("grpcMethods", texts(&operation.grpc_methods)),
        ("notGrpcMethods", texts(&operation.not_grpc_methods)),
    ])
}

fn condition(condition: &Condition) -> Value {
    let (header, claim) = match &condition.of {
        Subject::Header(name) => (vec![name.to_string()], Vec::new()),
        Subject::Claim(path) => (Vec::new(), texts(path)),
    };
    let (values, not_values) = (texts(&condition.values), texts(&condition.not_values));
    said([("header", header), ("claim", claim), ("values", values), ("notValues", not_values)])
}

// === impl Question ===

impl Question {
    /// Of the parameters of a query: `port`; `identity`, a SPIFFE ID or `<namespace>/<service account>` of `domain`; `client`, an address;
    /// `method`, `path`, `host`, any number of `header`s as `name:value`, and `claims`, a JSON object with an `iss`. Without method and
    /// path it is about bytes that are no HTTP.
    ///
    /// # Errors
    /// Which parameter is wrong, and why.
    pub fn read(
        parameters: impl IntoIterator<Item = (String, String)>,
        domain: &TrustDomain,
    ) -> Result<Self, String> {
        let mut question = Self { port: 0, identity: None, client: Ipv4Addr::LOCALHOST.into(), asks: None };
        let (mut method, mut path, mut host) = (None, None, None);
        let (mut headers, mut claims) = (HeaderMap::new(), None);
        for (name, value) in parameters {
            let wrong = |why: &str| format!("{name}: {value:?} {why}");
            match &*name {
                "port" => question.port = value.parse().map_err(|_| wrong("is not a port"))?,
                "identity" => {
                    question.identity = Some(identity(&value, domain).map_err(|why| wrong(&why))?);
                }
                "client" => question.client = value.parse().map_err(|_| wrong("is not an IP address"))?,
                "method" => {
                    let read = Method::from_bytes(value.as_bytes());
                    method = Some(read.map_err(|_| wrong("is not a method"))?);
                }
                "path" => path = Some(value.parse::<Uri>().map_err(|_| wrong("is not a path"))?),
                "host" => host = Some(value),
                "header" => {
                    let (field, said) = header(&value).ok_or_else(|| wrong("is not `name:value`"))?;
                    headers.append(field, said);
                }
                "claims" => {
                    let read = claimed(&value).ok_or_else(|| wrong("is not a JSON object with an `iss`"))?;
                    claims = Some(read);
                }
                _ => return Err(format!("{name}: there is no such parameter")),
            }
        }
        if question.port == 0 {
            return Err("port: is missing".to_owned());
        }
        if method.is_some() || path.is_some() {
            question.asks = Some(Asks {
                method: method.unwrap_or(Method::GET),
                target: path.unwrap_or_default(),
                host: host.unwrap_or_default(),
                headers,
                claims,
            });
        } else if host.is_some() || !headers.is_empty() || claims.is_some() {
            return Err("path: is missing, though something is said of a request".to_owned());
        }
        Ok(question)
    }

    /// What `policy` makes of it.
    pub fn answer(&self, policy: &Inbound) -> Value {
        let tls = if self.identity.is_some() { TlsKind::Mesh } else { TlsKind::None };
        let connection =
            Connection { port: self.port, peer: self.identity.as_ref(), tls, client: self.client };
        let judged = match &self.asks {
            None => policy.evaluate_bytes(&connection),
            Some(asks) => policy.evaluate_request(&connection, &asks.requested()),
        };
        let names = policy.names_identities(self.port);
        told(judged, self.identity.is_none() && names)
    }
}

impl Asks {
    fn requested(&self) -> Requested<'_> {
        let Self { method, target, host, headers, claims } = self;
        let authority = target.authority().map_or(host.as_str(), |authority| authority.as_str());
        let (path, query) = (target.path(), target.query().unwrap_or(""));
        let asked = Asked { method, authority, path, query, headers };
        let kind = headers.get(http::header::CONTENT_TYPE);
        let grpc = kind.is_some_and(|kind| kind.as_bytes().starts_with(b"application/grpc"));
        Requested { asked, grpc, claims: claims.as_ref(), headless: false }
    }
}

fn identity(text: &str, domain: &TrustDomain) -> Result<SpiffeId, String> {
    let read = match text.split_once('/') {
        _ if text.contains("://") => SpiffeId::parse(text),
        Some((namespace, account)) => SpiffeId::new(domain, namespace, account),
        None => return Err("is neither a SPIFFE ID nor `<namespace>/<service account>`".to_owned()),
    };
    read.map_err(|error| error.to_string())
}

fn header(text: &str) -> Option<(HeaderName, HeaderValue)> {
    let (name, value) = text.split_once(':')?;
    let name = HeaderName::from_bytes(name.trim().as_bytes()).ok()?;
    Some((name, HeaderValue::from_str(value.trim()).ok()?))
}

fn claimed(text: &str) -> Option<Claims> {
    let Ok(Value::Object(all)) = serde_json::from_str(text) else { return None };
    let issuer = all.get("iss")?.as_str()?.to_owned();
    Some(Claims::verified(&issuer, all))
}

fn told(judged: Judged, lacks_identity: bool) -> Value {
    let Judged { verdict, would_deny } = judged;
    let (kind, rule, reason) = match verdict {
        Verdict::Allow { rule } => ("allow", Some(rule), None),
        Verdict::Audit { rule } => ("audit", Some(rule), None),
        Verdict::Deny { reason: Denial::PolicyDenied, rule: None } if lacks_identity => {
            ("deny", None, Some("identity_required"))
        }
        Verdict::Deny { reason, rule } => {
            let mut told = told_denial(reason);
            told["rule"] = json!(rule.as_deref());
            return told;
        }
    };
    json!({
        "verdict": kind, "rule": rule.as_deref(), "reason": reason, "wouldDeny": would_deny.as_deref(),
    })
}

fn told_denial(denial: Denial) -> Value {
    let detail = match denial {
        Denial::Unclear(why) => Some(why.to_string()),
        _ => None,
    };
    json!({ "verdict": "deny", "reason": denial.as_str(), "detail": detail, "wouldDeny": null })
}

#[cfg(test)]
mod tests {
    use std::time::Instant;

    use super::super::{AccessAction, InboundSpec, PathText, Text, Unspoken};
    use super::*;
    use crate::state::ObjectName;

    fn policy() -> Inbound {
        let from = Source { service_accounts: vec![Text::Exact("shop/web".into())], ..Source::default() };
        let to = Operation { paths: vec![PathText::prefix("/cart/")], ..Operation::default() };
        let rule = AccessRule { name: "shop/p/cart".into(), from: vec![from], to: vec![to], when: vec![] };
        let one = |action, rules| AccessPolicy {
            name: "shop/p".into(),
            action,
            dry_run: false,
            ports: vec![80],
            routes: vec![],
            rules,
        };
        let any = AccessRule { name: "shop/t/all".into(), ..AccessRule::default() };
        let trial =
            AccessPolicy { dry_run: true, name: "shop/t".into(), ..one(AccessAction::Deny, vec![any]) };
        Inbound::new(
            InboundSpec {
                workload: ObjectName::new("shop", "orders"),
                mode: Mode::Permissive,
                ports: Vec::new(),
                rules: Vec::new(),
                policies: vec![one(AccessAction::Allow, vec![rule]), trial],
                trust_domain: Some(TrustDomain::default()),
                unspoken: Unspoken::default(),
                rate_limits: Vec::new(),
                connection_ages: Vec::new(),
                access_logs: Vec::new(),
                samplings: Vec::new(),
                access_log: None,
                sampling: Default::default(),
                authentications: Vec::new(),
                external: Vec::new(),
            },
            Instant::now(),
        )
    }

    fn read(query: &[(&str, &str)]) -> Result<Question, String> {
        let parameters = query.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned()));
        Question::read(parameters, &TrustDomain::default())
    }

    #[test]
    fn what_is_in_force_is_shown_as_it_is_written() {
        let shown = in_force(&policy());
        assert_eq!((&shown["workload"], &shown["mtls"]), (&json!("shop/orders"), &json!("permissive")));
        let rule = &shown["policies"][0]["rules"][0];
        let expected = json!({
            "name": "shop/p/cart", "from": [{ "serviceAccounts": ["shop/web"] }],
            "to": [{ "paths": ["/cart/*"] }], "when": [],
        });
        assert_eq!(*rule, expected);
        assert_eq!(shown["policies"][1]["dryRun"], json!(true));
        assert_eq!((&shown["tokens"], &shown["authorizers"]), (&json!([]), &json!([])));
    }

    #[test]
    fn whose_tokens_are_taken_and_who_else_is_asked_is_shown() {
        let policy = AuthenticationSpec {
            name: "shop/t".into(),
            ports: vec![80],
            routes: Vec::new(),
            issuers: Vec::new(),
            required: true,
            dry_run: false,
        };
        let expected = json!({
            "name": "shop/t", "dryRun": false, "ports": [80], "routes": [], "required": true, "issuers": [],
        });
        assert_eq!(tokens(&policy), expected);
        let policy = ExternalSpec { dry_run: true, ..crate::policy::external_example("shop/o") };
        let expected = json!({
            "name": "shop/o", "dryRun": true, "ports": [], "notPorts": [], "routes": [], "service": "shop/opa:9191",
            "failureAllows": false, "invalid": null,
        });
        assert_eq!(authorizer(&policy), expected);
    }

    #[test]
    fn a_question_is_answered_as_a_request_would_be() {
        let answer = |query: &[(&str, &str)]| read(query).unwrap().answer(&policy());
        let asked =
            answer(&[("port", "80"), ("identity", "shop/web"), ("method", "GET"), ("path", "/cart/1")]);
        let expected =
            json!({ "verdict": "allow", "rule": "shop/p/cart", "reason": null, "wouldDeny": "shop/t/all" });
        assert_eq!(asked, expected);
        for (query, reason) in [
            (&[("port", "80"), ("identity", "shop/web"), ("path", "/")][..], "policy_denied"),
            (&[("port", "80"), ("identity", "shop/web")], "policy_denied"),
            (&[("port", "80"), ("path", "/cart/1")], "identity_required"),
            (&[("port", "80"), ("identity", "shop/web"), ("path", "/a%2fb")], "malformed_request"),
        ] {
            let answer = answer(query);
            assert_eq!(
                (&answer["verdict"], &answer["reason"]),
                (&json!("deny"), &json!(reason)),
                "{query:?}"
            );
        }
        assert_eq!(answer(&[("port", "81"), ("path", "/")])["verdict"], "allow");
    }

    #[test]
    fn what_is_no_question_says_why() {
        for (query, said) in [
            (&[][..], "port"),
            (&[("port", "x")], "port"),
            (&[("port", "80"), ("identity", "web")], "identity"),
            (&[("port", "80"), ("method", "G T")], "method"),
            (&[("port", "80"), ("host", "a")], "path"),
            (&[("port", "80"), ("path", "/"), ("header", "a")], "header"),
            (&[("port", "80"), ("path", "/"), ("claims", "{}")], "claims"),
            (&[("port", "80"), ("colour", "red")], "colour"),
        ] {
            let why = read(query).unwrap_err();
            assert!(why.starts_with(said), "{query:?}: {why}");
        }
    }
}
