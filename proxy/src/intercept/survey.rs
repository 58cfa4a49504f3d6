//! What is in force in this network namespace: read, never changed.
//!
//! Decides whose chains do not go together with ours ([`stranger`]). Asked by `install` before it writes, and by `check`
//! for what it cannot try. Knows nothing of how chains are read: that is `kernel`'s and `iptables`'.

use super::{Refused, iptables, kernel};

/// A chain of somebody's.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Found {
    /// The table, as its tool names it: ``the table `ip nat` ``.
    pub(super) place: String,
    pub(super) name: String,
    /// How many rules are in it; of nf_tables, also what leads to it.
    pub(super) rules: usize,
    /// Whether the kernel asks it, at a hook of its own or from a chain that has one.
    pub(super) asked: bool,
}

/// Somebody whose rules do not go together with ours.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("{who} (chain `{chain}` in {place}): {remedy}")]
pub struct Stranger {
    who: &'static str,
    chain: String,
    place: String,
    remedy: &'static str,
}

const HOST: &str = "this network namespace is that of a host of containers";
const NOT_THE_HOST: &str = "rules here would lead every program of the host through the proxy. Run `install` in the network \
                            namespace of the pod; if this is a pod that has containers of its own, say `--force`";

/// Names of chains, or with `*` how they begin; whose they are; what to do.
const STRANGERS: [(&str, &str, &str); 5] = [
    (
        "ISTIO_*",
        "Istio's rules are in force here",
        "two meshes in one pod do not work. Take the workload out of Istio (label `sidecar.istio.io/inject: \"false\"`) and \
         start it anew",
    ),
    (
        "PROXY_INIT_*",
        "Linkerd's rules are in force here",
        "two meshes in one pod do not work. Take the workload out of Linkerd (annotation `linkerd.io/inject: disabled`) and \
         start it anew",
    ),
    // Not `DOCKER_*`: that is Docker's DNS in a container, and only concerns loopback.
    ("DOCKER-*", HOST, NOT_THE_HOST),
    ("DOCKER", HOST, NOT_THE_HOST),
    ("KUBE-*", HOST, NOT_THE_HOST),
];

/// Every chain in force, of nf_tables and of iptables beside it.
///
/// # Errors
/// As of the kernel's: for one, without CAP_NET_ADMIN nobody may look.
pub(super) fn chains() -> Result<Vec<Found>, Refused> {
    let mut chains = match kernel::chains() {
        Err(Refused::NoNfTables) => Vec::new(),
        chains => chains?,
    };
    chains.extend(iptables::chains());
    Ok(chains)
}

/// The first whose rules do not go together with ours.
pub(super) fn stranger(chains: &[Found]) -> Option<Stranger> {
    chains.iter().find_map(|found| {
        let is = |pattern: &str| match pattern.strip_suffix('*') {
            Some(beginning) => found.name.starts_with(beginning),
            None => found.name == pattern,
        };
        let (_, who, remedy) = STRANGERS.iter().find(|(pattern, ..)| is(pattern))?;
        Some(Stranger { who, chain: found.name.clone(), place: found.place.clone(), remedy })
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn found(name: &str) -> Vec<Found> {
        let place = "the table `ip nat`".to_owned();
        vec![Found { place, name: name.to_owned(), rules: 1, asked: true }]
    }

    #[test]
    fn who_does_not_go_together_with_us_is_named_with_what_to_do() {
        for (name, words) in [
            ("ISTIO_OUTPUT", ["Istio", "`ISTIO_OUTPUT` in the table `ip nat`", "sidecar.istio.io/inject"]),
            ("PROXY_INIT_REDIRECT", ["Linkerd", "PROXY_INIT_REDIRECT", "linkerd.io/inject: disabled"]),
            ("DOCKER", ["host of containers", "`DOCKER`", "--force"]),
            ("DOCKER-USER", ["host of containers", "`DOCKER-USER`", "--force"]),
            ("KUBE-SERVICES", ["host of containers", "`KUBE-SERVICES`", "of the pod"]),
        ] {
            let said = stranger(&found(name)).unwrap().to_string();
            assert!(words.iter().all(|word| said.contains(word)), "{said}");
        }
    }

    #[test]
    fn others_are_no_business_of_ours() {
        for name in ["OUTPUT", "output", "DOCKER_OUTPUT", "CNI-HOSTPORT-DNAT", "TULLE_OUTBOUND", "inbound"] {
            assert_eq!(stranger(&found(name)), None, "{name}");
        }
    }
}
