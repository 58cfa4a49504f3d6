//! What a RequestAuthentication says: whose tokens requests may carry, and by whose keys.
//!
//! Decides what is written, of one policy alone: a set of keys is read here as a proxy would read it, and an address is refused that a proxy would not
//! fetch from. Whether the Service of an address is there is decided in `model::authentication`.

use std::collections::BTreeSet;
use std::time::Duration;

use tulle_api::v1;
use tulle_certs::jwks::{self, KeySet};

use super::route::{check_name, read_duration};
use super::{NamespacedName, is_label, port};
use crate::finding::Notes;
use crate::kinds::{self, ClaimHeader, Jwks, PolicyMode, RequestAuthenticationSpec, TokenIssuer, TokenPlace};

/// The bounds of the schema.
const MAX_ISSUERS: usize = 16;
const MAX_LIST: usize = 16;
const MAX_PLACES: usize = 8;
const MAX_STEPS: usize = 8;
const MOST_LEEWAY: Duration = Duration::from_secs(300);
const LEAST_REFRESH: Duration = Duration::from_secs(10);
const MOST_TIMEOUT: Duration = Duration::from_secs(30);
/// Headers that claims must not be put into: HTTP's own framing, whom a request is for, and where tokens are.
const NOT_FOR_CLAIMS: [&str; 13] = [
    "authorization",
    "connection",
    "content-length",
    "content-type",
    "cookie",
    "expect",
    "forwarded",
    "host",
    "proxy-authorization",
    "te",
    "trailer",
    "transfer-encoding",
    "upgrade",
];

/// What a RequestAuthentication says, read.
#[derive(Debug, Clone, PartialEq)]
pub struct Authentication {
    /// As the wire has them.
    pub issuers: Vec<v1::TokenIssuer>,
    /// A request without a token is refused.
    pub required: bool,
    /// What it would have refused is told.
    pub dry_run: bool,
}

// === impl Authentication ===

impl Authentication {
    pub(super) fn read(policy: &NamespacedName, spec: &RequestAuthenticationSpec, notes: &mut Notes) -> Self {
        if spec.issuers.is_empty() {
            notes.refuse(
                "spec.issuers",
                "the policy takes nobody's tokens",
                "name at least one issuer, by `issuer` and `jwks`",
            );
        }
        at_most(MAX_ISSUERS, spec.issuers.len(), "spec.issuers", notes);
        let issuers = spec.issuers.iter().enumerate();
        let issuers =
            issuers.map(|(index, one)| issuer(policy, &format!("spec.issuers[{index}]"), one, notes));
        let issuers: Vec<v1::TokenIssuer> = issuers.collect();
        for (index, one) in issuers.iter().enumerate() {
            if issuers[..index].contains(one) {
                notes.refuse(format!("spec.issuers[{index}]"), "the issuer is there twice", "remove one");
            }
        }
        Self { issuers, required: spec.required, dry_run: spec.mode == PolicyMode::DryRun }
    }

    /// In force in place of one that cannot be read and never could: nobody's tokens are taken, and one is needed, so that nobody gets in whose token
    /// should have been verified.
    pub(crate) fn closed() -> Self {
        Self { issuers: Vec::new(), required: true, dry_run: false }
    }

    /// The Services from which keys are fetched, with their ports, by the place of their issuer.
    pub fn services(&self) -> impl Iterator<Item = (usize, NamespacedName, u16)> {
        self.issuers.iter().enumerate().filter_map(|(index, one)| {
            let Some(v1::token_issuer::Keys::Remote(remote)) = &one.keys else { return None };
            let service = remote.service.as_ref()?;
            let name = NamespacedName::new(service.namespace.as_str(), service.name.as_str());
            Some((index, name, u16::try_from(remote.service_port).ok()?))
        })
    }
}

fn issuer(policy: &NamespacedName, at: &str, written: &TokenIssuer, notes: &mut Notes) -> v1::TokenIssuer {
    if written.issuer.is_empty() {
        notes.refuse(format!("{at}.issuer"), "the issuer has no name", "write what `iss` says in its tokens");
    }
    at_most(MAX_LIST, written.audiences.len(), &format!("{at}.audiences"), notes);
    for (index, _) in written.audiences.iter().enumerate().filter(|(_, audience)| audience.is_empty()) {
        notes.refuse(format!("{at}.audiences[{index}]"), "an audience has no name", "remove it");
    }
    if written.audiences.is_empty() {
        notes.warn(
            format!("{at}.audiences"),
            "the issuer's tokens for any other application are taken here too",
            "name what `aud` says in tokens that are meant for these workloads",
        );
    }
    at_most(MAX_PLACES, written.from.len(), &format!("{at}.from"), notes);
    let from = written.from.iter().enumerate();
    let from: Vec<v1::TokenPlace> =
        from.filter_map(|(index, one)| place(&format!("{at}.from[{index}]"), one, notes)).collect();
    let leeway_at = format!("{at}.leeway");
    let leeway = written.leeway.as_ref().and_then(|written| read_duration(&leeway_at, &written.0, notes));
    if leeway.is_some_and(|leeway| leeway > MOST_LEEWAY) {
        notes.refuse(leeway_at, "tokens would be taken long after they have expired", "5m or less");
    }
    v1::TokenIssuer {
        issuer: written.issuer.clone(),
        audiences: written.audiences.clone(),
        keys: keys(policy, &format!("{at}.jwks"), &written.jwks, notes),
        claims_to_headers: claim_headers(&format!("{at}.claimsToHeaders"), written, &from, notes),
        from,
        forward: written.forward,
        leeway: on_the_wire(leeway),
    }
}

fn place(at: &str, written: &TokenPlace, notes: &mut Notes) -> Option<v1::TokenPlace> {
    if !check_name(format!("{at}.header"), &written.header, notes) {
        return None;
    }
    let prefix = &written.prefix;
    if !prefix.bytes().all(|byte| matches!(byte, b' '..=b'~')) || prefix.starts_with(' ') {
        let hint = "printable ASCII, such as `Bearer ` with the space at its end";
        notes.refuse(format!("{at}.prefix"), format!("{prefix:?} cannot begin a header's value"), hint);
    }
    Some(v1::TokenPlace { header: written.header.to_ascii_lowercase(), prefix: prefix.clone() })
}

fn claim_headers(
    at: &str,
    issuer: &TokenIssuer,
    from: &[v1::TokenPlace],
    notes: &mut Notes,
) -> Vec<v1::ClaimHeader> {
    at_most(MAX_LIST, issuer.claims_to_headers.len(), at, notes);
    let (mut read, mut names) = (Vec::new(), BTreeSet::new());
    for (index, written) in issuer.claims_to_headers.iter().enumerate() {
        let at = format!("{at}[{index}]");
        let claim = claim(&at, written, notes);
        let header = written.header.to_ascii_lowercase();
        if !check_name(format!("{at}.header"), &written.header, notes) {
            continue;
        }
        let has_token = from.iter().any(|place| place.header == header);
        if NOT_FOR_CLAIMS.contains(&&*header) || header.starts_with("x-tulle-") || has_token {
            notes.refuse(
                format!("{at}.header"),
                format!("`{header}` has a meaning of its own, and a claim would take its place"),
                "a header of the application's, such as `x-user`",
            );
        }
        if !names.insert(header.clone()) {
            notes.refuse(format!("{at}.header"), format!("`{header}` gets two claims"), "remove one");
        }
        read.push(v1::ClaimHeader { header, claim });
    }
    read
}

fn claim(at: &str, written: &ClaimHeader, notes: &mut Notes) -> Option<v1::ClaimPath> {
    let (field, elements) = match (&written.claim, &written.claim_path) {
        (Some(claim), None) => ("claim", claim.split('.').map(str::to_owned).collect::<Vec<String>>()),
        (None, Some(path)) => ("claimPath", path.clone()),
        _ => {
            let message = "exactly one of `claim` and `claimPath` says which claim it is";
            notes.refuse(at, message, "`claim: sub`, or `claimPath: [\"https://example.com/roles\"]`");
            return None;
        }
    };
    if elements.is_empty() || elements.len() > MAX_STEPS || elements.iter().any(String::is_empty) {
        notes.refuse(
            format!("{at}.{field}"),
            "a step of the way to the claim is empty, or there are too many",
            "`a.b` is `b` within `a`; a name with a dot is written in `claimPath`",
        );
    }
    Some(v1::ClaimPath { elements })
}

fn keys(
    policy: &NamespacedName,
    at: &str,
    written: &Jwks,
    notes: &mut Notes,
) -> Option<v1::token_issuer::Keys> {
    match (&written.inline, &written.url) {
        (Some(text), None) => {
            let others = [
                ("refresh", written.refresh.is_some()),
                ("timeout", written.timeout.is_some()),
                ("service", written.service.is_some()),
                ("roots", written.roots.is_some()),
            ];
            for (field, _) in others.into_iter().filter(|(_, is_there)| *is_there) {
                let message = format!("`{field}` means nothing for keys that are written here");
                notes.refuse(
                    format!("{at}.{field}"),
                    message,
                    "remove it, or write `url` in place of `inline`",
                );
            }
            inline(&format!("{at}.inline"), text, notes);
            Some(v1::token_issuer::Keys::Inline(text.clone()))
        }
        (None, Some(url)) => Some(v1::token_issuer::Keys::Remote(remote(policy, at, url, written, notes))),
        _ => {
            let message = "exactly one of `inline` and `url` says which keys verify the tokens";
            notes.refuse(
                at,
                message,
                "most issuers tell their URL at `/.well-known/openid-configuration`, as `jwks_uri`",
            );
            None
        }
    }
}

/// Refuses what a proxy would, and what nobody should have written.
fn inline(at: &str, text: &str, notes: &mut Notes) {
    if jwks::has_secrets(text) {
        notes.refuse(
            at,
            "there is a private or a symmetric key in the set: whoever can read the policy could make tokens",
            "write the public keys only, and replace this one at its issuer",
        );
        return;
    }
    match KeySet::read(text.as_bytes()) {
        Err(error) => {
            notes.refuse(at, error.to_string(), "`{\"keys\": […]}`, with a key for RS, PS, ES or EdDSA")
        }
        Ok(set) if !set.skipped().is_empty() => {
            notes.warn(at, format!("not used: {}", set.skipped().join("; ")), "remove these keys");
        }
        Ok(_) => {}
    }
}

fn remote(policy: &NamespacedName, at: &str, url: &str, written: &Jwks, notes: &mut Notes) -> v1::RemoteKeys {
    check_url(&format!("{at}.url"), url, written.service.is_some(), notes);
    let time = |field: &str, written: &Option<kinds::Duration>, notes: &mut Notes| {
        let at = format!("{at}.{field}");
        let read = written.as_ref().and_then(|written| read_duration(&at, &written.0, notes));
        (at, read)
    };
    let (refresh_at, refresh) = time("refresh", &written.refresh, notes);
    if refresh.is_some_and(|refresh| refresh < LEAST_REFRESH) {
        notes.refuse(refresh_at, "the issuer would be asked without a pause, by every proxy", "10s or more");
    }
    let (timeout_at, timeout) = time("timeout", &written.timeout, notes);
    if timeout.is_some_and(|timeout| timeout.is_zero() || timeout > MOST_TIMEOUT) {
        notes.refuse(
            timeout_at,
            "not a time in which keys could come, or one that nobody waits for",
            "more than 0s, 30s at most",
        );
    }
    let service = written.service.as_ref().map(|service| {
        let namespace = service.namespace.as_deref().unwrap_or(&policy.namespace);
        for (field, text) in [("namespace", namespace), ("name", service.name.as_str())] {
            if !is_label(text) {
                let message = format!("`{text}` cannot be the {field} of a Service");
                notes.refuse(format!("{at}.service.{field}"), message, "lower case letters, digits and `-`");
            }
        }
        let number = port(service.port, format!("{at}.service.port"), notes);
        (v1::ObjectName { namespace: namespace.to_owned(), name: service.name.clone() }, number)
    });
    let (service, service_port) = service.unzip();
    if let Some(roots) = &written.roots {
        if service.is_some() {
            let message = "a Service of the mesh is known by its identity, not by roots";
            notes.refuse(format!("{at}.roots"), message, "remove it");
        } else if let Err(error) = tulle_certs::pem::certificates(roots) {
            notes.refuse(format!("{at}.roots"), error.to_string(), "certificates in PEM");
        }
    }
    v1::RemoteKeys {
        url: url.to_owned(),
        refresh: on_the_wire(refresh),
        timeout: on_the_wire(timeout),
        service,
        service_port: service_port.unwrap_or_default().into(),
        roots: written.roots.clone().unwrap_or_default(),
    }
}

/// Refuses an address that no proxy would fetch from.
fn check_url(at: &str, url: &str, is_of_mesh: bool, notes: &mut Notes) {
    let read: Result<http::Uri, _> = url.parse();
    let uri = match &read {
        Ok(uri) if uri.host().is_some_and(|host| !host.is_empty()) => uri,
        _ => {
            let hint = "such as `https://id.example.com/realms/shop/protocol/openid-connect/certs`";
            return notes.refuse(at, format!("`{url}` is not an address"), hint);
        }
    };
    if uri.authority().is_some_and(|authority| authority.as_str().contains('@')) {
        return notes.refuse(
            at,
            "there is a user or a password in the address, and keys are no secret",
            "remove what stands before the `@`",
        );
    }
    match (uri.scheme_str(), is_of_mesh) {
        (Some("https"), false) | (Some("http"), true) => {}
        (Some("http"), false) => notes.refuse(
            at,
            "whoever is between could put keys of their own into the answer",
            "`https://…`; or name the Service of the mesh that serves it in `service`, which is asked over mutual TLS",
        ),
        (Some("https"), true) => notes.refuse(
            at,
            "a Service of the mesh is asked over the mesh's own TLS, with none within it",
            "`http://…` and the port at which it speaks HTTP; or remove `service`, to ask by name from outside the mesh",
        ),
        _ => notes.refuse(at, format!("`{url}` is not an address of https"), "`https://…`"),
    }
}

fn on_the_wire(read: Option<Duration>) -> Option<prost_types::Duration> {
    read.and_then(|duration| duration.try_into().ok())
}

/// Refuses a list that is longer than the schema allows.
fn at_most(max: usize, length: usize, field: &str, notes: &mut Notes) {
    if length > max {
        let message = format!("{length} entries: more than the {max} that are allowed");
        notes.refuse(field, message, "leave some out, or write several policies");
    }
}

#[cfg(test)]
mod tests;
