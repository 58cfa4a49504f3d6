//! Virtual IPs for services that were given none, as in a folder of YAML, where nobody hands them out.
//!
//! Each is a hash of the service's name, so that it is the same after a restart and on every replica, and what an
//! application holds on to stays true. Pure. The IPv4 addresses are few: where the hashes of two names meet, the
//! first in the order of names has the address and the other takes its next hash, whatever the order in which they came.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use aws_lc_rs::digest;
use ipnet::{IpNet, Ipv4Net, Ipv6Net};

use crate::object::NamespacedName;

/// For measurements within a network, never routed (RFC 2544): no neighbour of a laptop has one.
const IPV4: Ipv4Net = Ipv4Net::new_assert(Ipv4Addr::new(198, 18, 0, 0), 15);
/// A unique local prefix (RFC 4193 §3.1).
const IPV6: Ipv6Net = Ipv6Net::new_assert(Ipv6Addr::new(0xfd74, 0x756c, 0x6c65, 0, 0, 0, 0, 0), 48);
/// Of each 256, the first and the last are left out: some programs take them for a network and its broadcast.
const LAST_OCTETS: u32 = 254;
/// How many IPv4 addresses there are, by third octet and last.
const COUNT: u32 = 2 * 256 * LAST_OCTETS;

/// Where they lie.
pub const NETWORKS: [IpNet; 2] = [IpNet::V4(IPV4), IpNet::V6(IPV6)];

/// One IPv4 (as long as there are any) and one IPv6 address for each of `names`; none of `taken`.
pub(super) fn assign<'a>(
    names: impl IntoIterator<Item = &'a NamespacedName>,
    taken: &BTreeSet<IpAddr>,
) -> BTreeMap<NamespacedName, Vec<IpAddr>> {
    let mut used = taken.clone();
    let names: BTreeSet<&NamespacedName> = names.into_iter().collect();
    let mut assigned = BTreeMap::new();
    for name in names {
        // With half of the addresses in use, one in a billion names needs more than thirty tries.
        let mut free = |candidate: fn(&digest::Digest) -> IpAddr| {
            (0..64_u8).map(|attempt| candidate(&hash(name, attempt))).find(|address| used.insert(*address))
        };
        let addresses = [free(ipv4), free(ipv6)].into_iter().flatten().collect();
        assigned.insert(name.clone(), addresses);
    }
    assigned
}

fn hash(name: &NamespacedName, attempt: u8) -> digest::Digest {
    let mut context = digest::Context::new(&digest::SHA256);
    context.update(name.to_string().as_bytes());
    context.update(&[0, attempt]);
    context.finish()
}

fn ipv4(hash: &digest::Digest) -> IpAddr {
    let number = bytes(hash, 0).iter().take(8).fold(0, |number, byte| number << 8 | u64::from(*byte));
    let number = u32::try_from(number % u64::from(COUNT)).unwrap_or_default();
    let offset = (number / LAST_OCTETS) << 8 | (1 + number % LAST_OCTETS);
    IpAddr::V4(Ipv4Addr::from_bits(IPV4.network().to_bits() | offset))
}

fn ipv6(hash: &digest::Digest) -> IpAddr {
    let low = bytes(hash, 8).iter().take(10).fold(0, |number, byte| number << 8 | u128::from(*byte));
    IpAddr::V6(Ipv6Addr::from_bits(IPV6.network().to_bits() | low))
}

fn bytes(hash: &digest::Digest, from: usize) -> &[u8] {
    hash.as_ref().get(from..).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn name(text: &str) -> NamespacedName {
        NamespacedName::parse(text).unwrap()
    }

    #[test]
    fn an_address_follows_from_the_name_alone() {
        let alone = assign([&name("shop/orders")], &BTreeSet::new());
        let expected: Vec<IpAddr> = ["198.18.63.59", "fd74:756c:6c65:231a:f6f3:1907:3f81:e20a"]
            .map(|text| text.parse().unwrap())
            .into();
        assert_eq!(alone[&name("shop/orders")], expected, "other replicas and versions say the same");
        let among = assign([&name("a/b"), &name("shop/orders"), &name("z/z")], &BTreeSet::new());
        assert_eq!(among[&name("shop/orders")], expected);
    }

    #[test]
    fn thousands_of_services_have_each_their_own() {
        let names: Vec<NamespacedName> = (0..20_000).map(|n| name(&format!("shop/s{n}"))).collect();
        let assigned = assign(&names, &BTreeSet::new());
        let all: BTreeSet<IpAddr> = assigned.values().flatten().copied().collect();
        assert_eq!(all.len(), 2 * names.len());
        for address in &all {
            assert!(NETWORKS.iter().any(|network| network.contains(address)), "{address}");
        }
        // Whatever the order in which they came.
        assert_eq!(assign(names.iter().rev(), &BTreeSet::new()), assigned);
        // What somebody wrote for another service is not given away.
        let taken = BTreeSet::from([assigned[&names[0]][0]]);
        assert_ne!(assign(&names[..1], &taken)[&names[0]][0], assigned[&names[0]][0]);
    }
}
