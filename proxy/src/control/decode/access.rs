//! `AccessPolicy`: who may connect, and what may be asked.
//!
//! Nothing is left out: what an older proxy does not know may be what narrows a rule that allows, or widens one that denies. Fields that are not
//! known are not seen; but a source or an operation of which nothing else is left describes everything, which no control plane says so.

use http::Method;
use tulle_api::v1;

use super::rule::{Patterns, header_name, matches};
use super::{Result, each, fault, hostname, network, port};
use crate::policy::{
    AccessAction, AccessPolicy, AccessRule, Condition, GrpcMethod, Operation, PathText, RouteScope, Source,
    Subject, Text,
};

/// Those at `at`.
pub(super) fn policies(
    messages: Vec<v1::AccessPolicy>,
    patterns: &mut Patterns,
    at: &str,
) -> Result<Vec<AccessPolicy>> {
    each(messages, at, |message, at| policy(message, patterns, at))
}

fn policy(message: v1::AccessPolicy, patterns: &mut Patterns, at: &str) -> Result<AccessPolicy> {
    if message.name.is_empty() {
        return Err(fault(format!("{at}.name"), "is missing"));
    }
    let rules = each(message.rules, &format!("{at}.rules"), |one, at| rule(one, &message.name, at))?;
    Ok(AccessPolicy {
        action: action(message.action, &format!("{at}.action"))?,
        dry_run: message.dry_run,
        ports: each(message.ports, &format!("{at}.ports"), port)?,
        routes: scopes(message.routes, patterns, &format!("{at}.routes"))?,
        rules,
        name: message.name.into(),
    })
}

/// The requests of routes that a policy is attached to.
pub(super) fn scopes(
    messages: Vec<v1::RouteScope>,
    patterns: &mut Patterns,
    at: &str,
) -> Result<Vec<RouteScope>> {
    each(messages, at, |scope, at| {
        Ok(RouteScope {
            hostnames: each(scope.hostnames, &format!("{at}.hostnames"), hostname)?,
            matches: matches(scope.matches, patterns, &format!("{at}.matches"))?,
        })
    })
}

fn action(number: i32, at: &str) -> Result<AccessAction> {
    match v1::AccessAction::try_from(number) {
        Ok(v1::AccessAction::Allow) => Ok(AccessAction::Allow),
        Ok(v1::AccessAction::Deny) => Ok(AccessAction::Deny),
        Ok(v1::AccessAction::Audit) => Ok(AccessAction::Audit),
        Ok(v1::AccessAction::Unspecified) => Err(fault(at, "is not set")),
        Err(_) => Err(fault(at, format!("{number} is not known"))),
    }
}

fn rule(message: v1::AccessRule, policy: &str, at: &str) -> Result<AccessRule> {
    if message.name.is_empty() {
        return Err(fault(format!("{at}.name"), "is missing"));
    }
    Ok(AccessRule {
        name: format!("{policy}/{}", message.name).into(),
        from: each(message.from, &format!("{at}.from"), source)?,
        to: each(message.to, &format!("{at}.to"), operation)?,
        when: each(message.when, &format!("{at}.when"), condition)?,
    })
}

fn source(message: v1::AccessSource, at: &str) -> Result<Source> {
    if message == v1::AccessSource::default() {
        return Err(fault(at, "says nothing of clients that is known"));
    }
    let texts = |messages, field: &str| each(messages, &format!("{at}.{field}"), text);
    Ok(Source {
        any_identity: message.any_identity,
        identities: texts(message.identities, "identities")?,
        not_identities: texts(message.not_identities, "not_identities")?,
        namespaces: texts(message.namespaces, "namespaces")?,
        not_namespaces: texts(message.not_namespaces, "not_namespaces")?,
        service_accounts: texts(message.service_accounts, "service_accounts")?,
        not_service_accounts: texts(message.not_service_accounts, "not_service_accounts")?,
        networks: each(message.networks, &format!("{at}.networks"), network)?,
        not_networks: each(message.not_networks, &format!("{at}.not_networks"), network)?,
        request_principals: texts(message.request_principals, "request_principals")?,
        not_request_principals: texts(message.not_request_principals, "not_request_principals")?,
    })
}

fn operation(message: v1::AccessOperation, at: &str) -> Result<Operation> {
    if message == v1::AccessOperation::default() {
        return Err(fault(at, "says nothing of requests that is known"));
    }
    let at = |field: &str| format!("{at}.{field}");
    Ok(Operation {
        ports: each(message.ports, &at("ports"), port)?,
        not_ports: each(message.not_ports, &at("not_ports"), port)?,
        hosts: each(message.hosts, &at("hosts"), text)?,
        not_hosts: each(message.not_hosts, &at("not_hosts"), text)?,
        methods: each(message.methods, &at("methods"), method)?,
        not_methods: each(message.not_methods, &at("not_methods"), method)?,
        paths: each(message.paths, &at("paths"), path)?,
        not_paths: each(message.not_paths, &at("not_paths"), path)?,
        grpc_methods: each(message.grpc_methods, &at("grpc_methods"), grpc_method)?,
        not_grpc_methods: each(message.not_grpc_methods, &at("not_grpc_methods"), grpc_method)?,
    })
}

fn condition(message: v1::AccessCondition, at: &str) -> Result<Condition> {
    use v1::access_condition::Of;
    let of = match message.of.ok_or_else(|| fault(at, "is neither of a header nor of a claim"))? {
        Of::Header(name) => Subject::Header(header_name(&name, &format!("{at}.header"))?),
        Of::Claim(v1::ClaimPath { elements }) if elements.is_empty() => {
            return Err(fault(format!("{at}.claim.elements"), "is empty"));
        }
        Of::Claim(v1::ClaimPath { elements }) => {
            Subject::Claim(elements.into_iter().map(String::into_boxed_str).collect())
        }
    };
    Ok(Condition {
        of,
        values: each(message.values, &format!("{at}.values"), text)?,
        not_values: each(message.not_values, &format!("{at}.not_values"), text)?,
    })
}

fn text(message: v1::TextMatch, at: &str) -> Result<Text> {
    use v1::text_match::Match;
    Ok(match message.r#match.ok_or_else(|| fault(at, "is missing"))? {
        Match::Exact(text) => Text::Exact(text.into()),
        Match::Prefix(text) => Text::Prefix(text.into()),
        Match::Suffix(text) => Text::Suffix(text.into()),
    })
}

fn path(message: v1::PathMatch, at: &str) -> Result<PathText> {
    use v1::path_match::Match;
    Ok(match message.r#match.ok_or_else(|| fault(at, "is missing"))? {
        Match::Exact(text) => PathText::exact(&text),
        Match::Prefix(text) => PathText::prefix(&text),
        Match::Suffix(text) => PathText::suffix(&text),
        Match::Template(text) => {
            PathText::template(&text).map_err(|error| fault(format!("{at}.template"), error.to_string()))?
        }
    })
}

fn method(text: String, at: &str) -> Result<Method> {
    Method::from_bytes(text.as_bytes()).map_err(|_| fault(at, format!("{text:?} is not a method")))
}

fn grpc_method(text: String, at: &str) -> Result<GrpcMethod> {
    let part = |part: &str| (part != "*").then(|| Box::<str>::from(part));
    match text.split_once('/') {
        Some((service, method)) if !service.is_empty() && !method.is_empty() && !method.contains('/') => {
            Ok(GrpcMethod { service: part(service), method: part(method) })
        }
        _ => Err(fault(at, format!("{text:?} is not `<package>.<Service>/<Method>`"))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::route::PathMatch;

    fn texts(value: &str) -> Vec<v1::TextMatch> {
        use v1::text_match::Match::{Exact, Prefix, Suffix};
        let all = [Exact(value.to_owned()), Prefix(value.to_owned()), Suffix(value.to_owned())];
        all.into_iter().map(|one| v1::TextMatch { r#match: Some(one) }).collect()
    }

    fn paths() -> Vec<v1::PathMatch> {
        use v1::path_match::Match::{Exact, Prefix, Suffix, Template};
        let template = Template("/a/{*}/{**}".to_owned());
        let all = [Exact("/a%20b".to_owned()), Prefix("/a/".to_owned()), Suffix(".php".to_owned()), template];
        all.into_iter().map(|one| v1::PathMatch { r#match: Some(one) }).collect()
    }

    fn message() -> v1::AccessPolicy {
        let networks = || vec!["10.0.0.0/8".to_owned(), "fd00::/8".to_owned()];
        let from = v1::AccessSource {
            identities: texts("spiffe://cluster.local/ns/shop/sa/web"),
            not_identities: texts("a"),
            namespaces: texts("b"),
            not_namespaces: texts("c"),
            service_accounts: texts("d/e"),
            not_service_accounts: texts("f/g"),
            networks: networks(),
            not_networks: networks(),
            request_principals: texts("h/i"),
            not_request_principals: texts("j/k"),
            any_identity: true,
        };
        let methods = || vec!["GET".to_owned(), "PURGE".to_owned()];
        let calls = || vec!["shop.Orders/Place".to_owned(), "shop.Orders/*".to_owned(), "*/Place".to_owned()];
        let to = v1::AccessOperation {
            ports: vec![80],
            not_ports: vec![81],
            hosts: texts("orders"),
            not_hosts: texts("admin"),
            methods: methods(),
            not_methods: methods(),
            paths: paths(),
            not_paths: paths(),
            grpc_methods: calls(),
            not_grpc_methods: calls(),
        };
        let claim = v1::ClaimPath { elements: vec!["realm".to_owned(), "roles".to_owned()] };
        let when =
            [v1::access_condition::Of::Header("x-a".to_owned()), v1::access_condition::Of::Claim(claim)];
        let when = when.into_iter().map(|of| v1::AccessCondition {
            of: Some(of),
            values: texts("v"),
            not_values: texts("w"),
        });
        let path = Some(v1::http_match::Path::Prefix("/a".to_owned()));
        let scope = v1::RouteScope {
            hostnames: vec!["*.example.com".to_owned()],
            matches: vec![v1::HttpMatch { path, ..Default::default() }],
        };
        v1::AccessPolicy {
            name: "shop/p".to_owned(),
            action: 2,
            dry_run: true,
            ports: vec![80],
            routes: vec![scope],
            rules: vec![v1::AccessRule {
                name: "r".to_owned(),
                from: vec![from],
                to: vec![to],
                when: when.collect(),
            }],
        }
    }

    fn read(message: v1::AccessPolicy) -> Result<AccessPolicy> {
        policies(vec![message], &mut Patterns::default(), "policies").map(|mut all| all.remove(0))
    }

    #[test]
    fn a_policy_is_decoded_as_a_whole() {
        let policy = read(message()).unwrap();
        assert_eq!((&*policy.name, policy.action, policy.dry_run), ("shop/p", AccessAction::Deny, true));
        assert_eq!((&policy.ports, policy.routes[0].hostnames.len()), (&vec![80], 1));
        assert_eq!(policy.routes[0].matches[0].path, PathMatch::Prefix("/a".into()));
        let rule = &policy.rules[0];
        assert_eq!(&*rule.name, "shop/p/r");
        let source = &rule.from[0];
        assert!(source.any_identity);
        let three = |value: &str| {
            vec![Text::Exact(value.into()), Text::Prefix(value.into()), Text::Suffix(value.into())]
        };
        for (texts, value) in [
            (&source.identities, "spiffe://cluster.local/ns/shop/sa/web"),
            (&source.not_identities, "a"),
            (&source.namespaces, "b"),
            (&source.not_namespaces, "c"),
            (&source.service_accounts, "d/e"),
            (&source.not_service_accounts, "f/g"),
            (&source.request_principals, "h/i"),
            (&source.not_request_principals, "j/k"),
            (&rule.to[0].hosts, "orders"),
            (&rule.to[0].not_hosts, "admin"),
            (&rule.when[0].values, "v"),
            (&rule.when[1].not_values, "w"),
        ] {
            assert_eq!(*texts, three(value));
        }
        assert_eq!((source.networks.len(), source.not_networks.len()), (2, 2));
        let operation = &rule.to[0];
        assert_eq!((&operation.ports, &operation.not_ports), (&vec![80], &vec![81]));
        assert_eq!(operation.methods, ["GET", "PURGE"].map(|it| Method::from_bytes(it.as_bytes()).unwrap()));
        assert_eq!(operation.methods, operation.not_methods);
        let template = PathText::template("/a/{*}/{**}").unwrap();
        let paths =
            [PathText::Exact("/a b".into()), PathText::prefix("/a/"), PathText::suffix(".php"), template];
        assert_eq!((&operation.paths[..], &operation.not_paths[..]), (&paths[..], &paths[..]));
        let calls: Vec<_> = operation.grpc_methods.iter().map(ToString::to_string).collect();
        assert_eq!(calls, ["shop.Orders/Place", "shop.Orders/*", "*/Place"]);
        assert_eq!(operation.grpc_methods, operation.not_grpc_methods);
        assert_eq!(rule.when[0].of, Subject::Header("x-a".parse().unwrap()));
        assert_eq!(rule.when[1].of, Subject::Claim(["realm".into(), "roles".into()].into()));
    }

    #[test]
    fn what_makes_no_policy_is_rejected_where_it_stands() {
        type Spoil = fn(&mut v1::AccessPolicy);
        let faults: &[(&str, Spoil)] = &[
            ("name", |it| it.name.clear()),
            ("action", |it| it.action = 0),
            ("action", |it| it.action = 9),
            ("ports[0]", |it| it.ports[0] = 65_536),
            ("routes[0].hostnames[0]", |it| it.routes[0].hostnames[0] = "a..b".to_owned()),
            ("routes[0].matches[0].path", |it| it.routes[0].matches[0].path = None),
            ("rules[0].name", |it| it.rules[0].name.clear()),
            ("rules[0].from[0]", |it| it.rules[0].from[0] = v1::AccessSource::default()),
            ("rules[0].to[0]", |it| it.rules[0].to[0] = v1::AccessOperation::default()),
            ("rules[0].from[0].identities[1]", |it| it.rules[0].from[0].identities[1].r#match = None),
            ("rules[0].from[0].networks[0]", |it| it.rules[0].from[0].networks[0] = "10/8".to_owned()),
            ("rules[0].to[0].ports[0]", |it| it.rules[0].to[0].ports[0] = 0),
            ("rules[0].to[0].methods[0]", |it| it.rules[0].to[0].methods[0] = "G T".to_owned()),
            ("rules[0].to[0].paths[0]", |it| it.rules[0].to[0].paths[0].r#match = None),
            ("rules[0].to[0].not_paths[3].template", |it| {
                let template = v1::path_match::Match::Template("/{**}/a".to_owned());
                it.rules[0].to[0].not_paths[3].r#match = Some(template);
            }),
            ("rules[0].to[0].grpc_methods[0]", |it| it.rules[0].to[0].grpc_methods[0] = "Place".to_owned()),
            ("rules[0].when[0]", |it| it.rules[0].when[0].of = None),
            ("rules[0].when[0].header", |it| {
                it.rules[0].when[0].of = Some(v1::access_condition::Of::Header("a b".to_owned()));
            }),
            ("rules[0].when[1].claim.elements", |it| {
                it.rules[0].when[1].of = Some(v1::access_condition::Of::Claim(v1::ClaimPath::default()));
            }),
        ];
        for (field, spoil) in faults {
            let mut message = message();
            spoil(&mut message);
            assert_eq!(read(message).unwrap_err().field, format!("policies[0].{field}"));
        }
    }
}
