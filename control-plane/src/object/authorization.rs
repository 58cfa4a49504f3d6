//! AuthorizationPolicy: who may do what.
//!
//! Read as far as it goes without knowing the mesh's trust domain, and what a target comes to: identities are kept as they are written, and ports
//! are numbers that [`crate::model`] translates. All else is as the wire has it. An empty list refuses the policy: left out, a field describes
//! anything, and empty it would describe nothing, so that nobody can tell which of the two was meant.
//!
//! - `text`: texts with `*`, paths and gRPC methods; `operations`: what is asked; here: who asks.

mod operations;
mod text;

use std::collections::BTreeSet;

use ipnet::IpNet;
use tulle_api::v1;

use self::operations::{read_conditions, read_operations};
use self::text::{Star, star};
use super::policy::{IDENTITY_HINT, Identity, read_name, read_ports};
use super::{NamespacedName, is_label, is_subdomain};
use crate::finding::Notes;
use crate::kinds::{self, PolicyAction, PolicyMode, PolicySource};

/// How many rules a policy may have.
const MAX_RULES: usize = 128;
/// How many sources and operations a rule may have, and entries most of their lists.
const MAX_LIST: usize = 64;
/// How many identities a source may name.
const MAX_IDENTITIES: usize = 256;

/// What an AuthorizationPolicy says.
#[derive(Debug, Clone, PartialEq)]
pub struct Authorization {
    /// What it does to what its rules describe.
    pub action: v1::AccessAction,
    /// What it would have done is told, and not done.
    pub dry_run: bool,
    /// None: nothing is described.
    pub rules: Vec<Rule>,
    /// It stands for one that cannot be read.
    pub is_unreadable: bool,
}

/// One rule of a policy: all of what is written.
#[derive(Debug, Clone, PartialEq)]
pub struct Rule {
    /// The rule's own name, or its index.
    pub name: String,
    /// The ports that it speaks of, by the numbers that its target's have; empty: every port.
    pub ports: Vec<u16>,
    /// Any of them; empty: anybody.
    pub from: Vec<Source>,
    /// Any of them; empty: everything. Ports are by the numbers that the target's have.
    pub to: Vec<v1::AccessOperation>,
    /// All of them.
    pub when: Vec<v1::AccessCondition>,
}

/// Who asks.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Source {
    /// Any of them; empty: it does not say.
    pub identities: Vec<Subject>,
    /// None of them.
    pub not_identities: Vec<Subject>,
    /// All else that it says, without `identities` and `not_identities`.
    pub others: v1::AccessSource,
}

/// Identities that are meant by a text.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Subject {
    /// This one.
    Exact(Identity),
    /// Service accounts of a namespace of the mesh's own trust domain whose names begin so.
    Accounts {
        /// Their namespace.
        namespace: String,
        /// How their names begin; may be empty.
        prefix: String,
    },
    /// Whose whole SPIFFE ID begins so.
    Prefix(String),
    /// Whose whole SPIFFE ID ends so.
    Suffix(String),
}

// === impl Authorization ===

impl Authorization {
    pub(super) fn read(
        policy: &NamespacedName,
        spec: &kinds::AuthorizationPolicySpec,
        notes: &mut Notes,
    ) -> Self {
        let action = match spec.action {
            PolicyAction::Allow => v1::AccessAction::Allow,
            PolicyAction::Deny => v1::AccessAction::Deny,
            PolicyAction::Audit => v1::AccessAction::Audit,
        };
        at_most(MAX_RULES, spec.rules.len(), "spec.rules", notes);
        if spec.rules.is_empty() {
            let (message, hint) = match spec.action {
                PolicyAction::Allow => ("the policy has no rule, so it allows nobody", "say who is allowed"),
                PolicyAction::Deny => (
                    "the policy has no rule, so it denies nothing",
                    "to deny everything, write `rules: [{}]`",
                ),
                PolicyAction::Audit => (
                    "the policy has no rule, so it tells of nothing",
                    "to be told of everything, write `rules: [{}]`",
                ),
            };
            notes.warn("spec.rules", message, hint);
        }
        let mut names = BTreeSet::new();
        let rules = spec.rules.iter().enumerate().map(|(index, rule)| {
            let at = format!("spec.rules[{index}]");
            let name = read_name(&at, index, rule.name.as_deref(), &mut names, notes);
            read_rule(policy, &at, name, rule, spec.action, notes)
        });
        let rules = rules.collect();
        Self { action, dry_run: spec.mode == PolicyMode::DryRun, rules, is_unreadable: false }
    }

    /// What holds in place of a policy that cannot be read: nobody is allowed, or, where its action is to deny or cannot be read either,
    /// everything is denied. None where it would have refused nothing.
    pub(crate) fn closed(action: Option<&str>, mode: Option<&str>) -> Option<Self> {
        if mode == Some("DryRun") || action == Some("AUDIT") {
            return None;
        }
        let everything = Rule {
            name: "unreadable".to_owned(),
            ports: Vec::new(),
            from: Vec::new(),
            to: Vec::new(),
            when: Vec::new(),
        };
        let (action, rules) = match action {
            Some("ALLOW") => (v1::AccessAction::Allow, Vec::new()),
            _ => (v1::AccessAction::Deny, vec![everything]),
        };
        Some(Self { action, dry_run: false, rules, is_unreadable: true })
    }
}

// === impl Rule ===

impl Rule {
    /// Whether it looks at more than the connection.
    pub fn is_of_requests(&self) -> bool {
        let of_port = |one: &v1::AccessOperation| {
            let rest = v1::AccessOperation { ports: Vec::new(), not_ports: Vec::new(), ..one.clone() };
            rest == v1::AccessOperation::default()
        };
        let of_client = |one: &Source| {
            one.others.request_principals.is_empty() && one.others.not_request_principals.is_empty()
        };
        !(self.when.is_empty() && self.to.iter().all(of_port) && self.from.iter().all(of_client))
    }
}

// === impl Subject ===

impl Subject {
    /// Reads a SPIFFE ID or `<namespace>/<service account>`, with `*` at one end.
    fn read(text: &str) -> Result<Self, String> {
        let not_one = |text: &str| Err(format!("`{text}` is not an identity"));
        match star(text)? {
            Star::Exact(text) => match Identity::parse(text) {
                Some(identity) => Ok(Self::Exact(identity)),
                None => not_one(text),
            },
            Star::Suffix(end) => Ok(Self::Suffix(end.to_owned())),
            Star::Prefix("") => Ok(Self::Prefix(String::new())),
            Star::Prefix(start) if start.starts_with("spiffe://") => Ok(Self::Prefix(start.to_owned())),
            Star::Prefix(start) => match start.split_once('/') {
                Some((namespace, prefix)) if is_label(namespace) && is_account_start(prefix) => {
                    Ok(Self::Accounts { namespace: namespace.to_owned(), prefix: prefix.to_owned() })
                }
                _ => not_one(text),
            },
        }
    }

    /// Compared with whole SPIFFE IDs.
    pub fn on_the_wire(&self, trust_domain: &str) -> v1::TextMatch {
        use v1::text_match::Match;

        let one = match self {
            Self::Exact(identity) => Match::Exact(identity.spiffe_id(trust_domain)),
            Self::Accounts { namespace, prefix } => {
                Match::Prefix(format!("spiffe://{trust_domain}/ns/{namespace}/sa/{prefix}"))
            }
            Self::Prefix(prefix) => Match::Prefix(prefix.clone()),
            Self::Suffix(suffix) => Match::Suffix(suffix.clone()),
        };
        v1::TextMatch { r#match: Some(one) }
    }

    /// Whoever proves an identity.
    pub fn is_anybody(&self) -> bool {
        matches!(self, Self::Prefix(prefix) if prefix.is_empty())
    }
}

/// How the name of a service account may begin.
fn is_account_start(text: &str) -> bool {
    text.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || matches!(b, b'-' | b'.'))
}

fn read_rule(
    policy: &NamespacedName,
    at: &str,
    name: String,
    rule: &kinds::PolicyRule,
    action: PolicyAction,
    notes: &mut Notes,
) -> Rule {
    if action == PolicyAction::Allow && rule.from.is_none() && rule.to.is_none() && rule.when.is_empty() {
        notes.refuse(
            at,
            "the rule says neither who nor what nor when, so it would allow everybody everything",
            "if that is meant, write `from: [{networks: [0.0.0.0/0, \"::/0\"]}]`",
        );
    }
    at_most(MAX_LIST, rule.to_ports.len(), &format!("{at}.toPorts"), notes);
    let field = format!("{at}.from");
    let sources = listed(MAX_LIST, &field, rule.from.as_deref(), notes).iter().enumerate();
    let from =
        sources.map(|(index, source)| read_source(policy, &format!("{field}[{index}]"), source, notes));
    let from = from.collect();
    Rule {
        name,
        ports: read_ports(&format!("{at}.toPorts"), &rule.to_ports, notes),
        from,
        to: read_operations(&format!("{at}.to"), rule.to.as_deref(), notes),
        when: read_conditions(&format!("{at}.when"), &rule.when, notes),
    }
}

fn read_source(policy: &NamespacedName, at: &str, written: &PolicySource, notes: &mut Notes) -> Source {
    if *written == PolicySource::default() {
        notes.refuse(at, "the source says nobody, so it would be anybody", "say who, or leave `from` out");
    }
    let identities = |field: &str, list: Option<&[String]>, notes: &mut Notes| -> Vec<Subject> {
        read_list(MAX_IDENTITIES, &format!("{at}.{field}"), list, IDENTITY_HINT, Subject::read, notes)
    };
    let texts = |field: &str, list: Option<&[String]>, read: &dyn Fn(&str) -> Read, notes: &mut Notes| {
        read_list(MAX_LIST, &format!("{at}.{field}"), list, NAMES_HINT, read, notes)
    };
    let networks = |field: &str, list: Option<&[String]>, notes: &mut Notes| -> Vec<String> {
        read_list(MAX_LIST, &format!("{at}.{field}"), list, NETWORK_HINT, read_network, notes)
    };
    let account = |text: &str| read_account(&policy.namespace, text);
    let mut read = Source {
        identities: identities("identities", written.identities.as_deref(), notes),
        not_identities: identities("notIdentities", written.not_identities.as_deref(), notes),
        others: v1::AccessSource {
            namespaces: texts("namespaces", written.namespaces.as_deref(), &read_namespace, notes),
            not_namespaces: texts("notNamespaces", written.not_namespaces.as_deref(), &read_namespace, notes),
            service_accounts: texts("serviceAccounts", written.service_accounts.as_deref(), &account, notes),
            not_service_accounts: texts(
                "notServiceAccounts",
                written.not_service_accounts.as_deref(),
                &account,
                notes,
            ),
            networks: networks("networks", written.networks.as_deref(), notes),
            not_networks: networks("notNetworks", written.not_networks.as_deref(), notes),
            request_principals: texts(
                "requestPrincipals",
                written.request_principals.as_deref(),
                &read_principal,
                notes,
            ),
            not_request_principals: texts(
                "notRequestPrincipals",
                written.not_request_principals.as_deref(),
                &read_principal,
                notes,
            ),
            ..v1::AccessSource::default()
        },
    };
    if read.identities.iter().any(Subject::is_anybody) {
        read.identities.clear();
        read.others.any_identity = true;
    }
    read
}

/// What a text is read to, or what is wrong with it.
type Read = Result<v1::TextMatch, String>;

const NAMES_HINT: &str = "a name, with `*` at its beginning or its end at most";
const NETWORK_HINT: &str = "an address, or a CIDR block such as `10.0.0.0/8` or `fd00::/8`";

fn read_namespace(text: &str) -> Read {
    let read = star(text)?;
    match read {
        Star::Exact(name) if !is_label(name) => Err(format!("`{name}` cannot be a namespace")),
        Star::Prefix(part) | Star::Suffix(part) if !is_account_start(part) || part.contains('.') => {
            Err(format!("no namespace is like `{text}`"))
        }
        _ => Ok(read.on_the_wire()),
    }
}

/// `<namespace>/<service account>`; without a namespace, of `namespace`.
fn read_account(namespace: &str, text: &str) -> Read {
    let wrong = || Err(format!("no service account is like `{text}`: write `<namespace>/<service account>`"));
    match star(text)? {
        Star::Exact(account) => {
            let whole = match account.contains('/') {
                true => account.to_owned(),
                false => format!("{namespace}/{account}"),
            };
            match whole.split_once('/') {
                Some((namespace, name)) if is_label(namespace) && is_subdomain(name) => {
                    Ok(Star::Exact(&whole).on_the_wire())
                }
                _ => wrong(),
            }
        }
        read @ (Star::Prefix(part) | Star::Suffix(part)) => {
            let is_start = matches!(read, Star::Prefix(_));
            let mut parts = part.splitn(2, '/');
            let fits = parts.all(is_account_start);
            // `web*` may be meant of accounts, or of namespaces.
            let is_clear = !is_start || part.is_empty() || part.contains('/');
            if fits && is_clear { Ok(read.on_the_wire()) } else { wrong() }
        }
    }
}

/// `<issuer>/<subject>`.
fn read_principal(text: &str) -> Read {
    let read = star(text)?;
    match read {
        Star::Exact(whole) if !whole.contains('/') => {
            Err(format!("`{whole}` is no `<issuer>/<subject>`, such as `https://login.example.com/alice`"))
        }
        _ => Ok(read.on_the_wire()),
    }
}

/// Without host bits; an address is a block of one.
fn read_network(text: &str) -> Result<String, String> {
    let address = || text.parse::<std::net::IpAddr>().ok().map(IpNet::from);
    match text.parse::<IpNet>().ok().or_else(address) {
        Some(network) => Ok(network.trunc().to_string()),
        None => Err(format!("`{text}` is neither an address nor a CIDR block")),
    }
}

/// Refuses a list that is longer than the schema allows.
fn at_most(max: usize, length: usize, field: &str, notes: &mut Notes) {
    if length > max {
        let hint = "write several rules or policies";
        notes.refuse(field, format!("{length} entries: more than the {max} that are allowed"), hint);
    }
}

/// A list as it is written, nothing where it is not; refused where it is empty or too long.
fn listed<'l, T>(max: usize, field: &str, list: Option<&'l [T]>, notes: &mut Notes) -> &'l [T] {
    let Some(list) = list else {
        return &[];
    };
    at_most(max, list.len(), field, notes);
    if list.is_empty() {
        notes.refuse(
            field,
            "the list is empty: nothing would be described by it, and anything without it",
            "name at least one, or leave the field out",
        );
    }
    list
}

/// Each entry of a list, read; what cannot be is refused.
fn read_list<T>(
    max: usize,
    field: &str,
    list: Option<&[String]>,
    hint: &str,
    read: impl Fn(&str) -> Result<T, String>,
    notes: &mut Notes,
) -> Vec<T> {
    let mut all = Vec::new();
    for (index, text) in listed(max, field, list, notes).iter().enumerate() {
        match read(text) {
            Ok(one) => all.push(one),
            Err(message) => notes.refuse(format!("{field}[{index}]"), message, hint),
        }
    }
    all
}

#[cfg(test)]
mod tests;
