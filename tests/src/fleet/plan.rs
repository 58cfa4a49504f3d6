//! Who serves what, who uses what, and how it is written: pure, the same for the same numbers.

use std::fmt::Write as _;
use std::net::Ipv6Addr;

use tulle_api::v1;

use crate::world::NAMESPACE;

/// The service's port in every service.
const SERVICE_PORT: u32 = 8080;
/// The port to dial of an endpoint's generation 0.
const FIRST_PORT: u32 = 10_000;
/// So many changes can be made to one endpoint.
pub const GENERATIONS: u32 = 50_000;

/// Where endpoints, and their changes, come from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Source {
    /// Each proxy's workload registers over its Report stream; its endpoint of one service moves to another port.
    Reports,
    /// EndpointSlices in the folder, a file each; an endpoint is replaced by one at another address.
    Files,
}

/// The size of the mesh.
#[derive(Clone, Copy, Debug)]
pub struct Plan {
    /// Simulated proxies.
    pub proxies: usize,
    /// Services.
    pub services: usize,
    /// Endpoints of each.
    pub endpoints: usize,
    /// How many services each proxy uses.
    pub uses: usize,
    /// Where endpoints come from.
    pub source: Source,
}

/// splitmix64: small, and the same everywhere.
#[derive(Debug, Clone)]
pub struct Random(pub u64);

// === impl Random ===

impl Random {
    /// 0 to `end`, without it.
    pub fn below(&mut self, end: usize) -> usize {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        usize::try_from((z ^ (z >> 31)) % end.max(1) as u64).unwrap_or(0)
    }
}

// === impl Plan ===

impl Plan {
    /// The services that a proxy uses, sorted.
    pub fn used_by(&self, proxy: usize) -> Vec<usize> {
        let mut random = Random(proxy as u64);
        let mut services: Vec<usize> = (0..self.services).collect();
        for at in 0..self.uses.min(self.services) {
            let other = at + random.below(self.services - at);
            services.swap(at, other);
        }
        services.truncate(self.uses);
        services.sort_unstable();
        services
    }

    /// The proxy whose workload is an endpoint of a service. No service has one proxy twice.
    pub fn server(&self, service: usize, endpoint: usize) -> usize {
        (service * self.endpoints + endpoint) % self.proxies
    }

    /// The services, and the endpoint of each, that a proxy's workload is.
    pub fn served_by(&self, proxy: usize) -> Vec<(usize, usize)> {
        if self.source == Source::Files {
            return Vec::new();
        }
        let all = (0..self.services).flat_map(|service| (0..self.endpoints).map(move |one| (service, one)));
        all.filter(|(service, endpoint)| self.server(*service, *endpoint) == proxy).collect()
    }

    /// The YAML of a service.
    pub fn service_yaml(&self, service: usize) -> String {
        format!(
            "apiVersion: v1\nkind: Service\nmetadata:\n  name: {}\n  namespace: {NAMESPACE}\nspec:\n  ports:\n    - name: \
             main\n      port: {SERVICE_PORT}\n      appProtocol: http\n",
            service_name(service)
        )
    }

    /// The YAML of a service's EndpointSlice, by the generation of each endpoint.
    pub fn slice_yaml(&self, service: usize, generations: &[u32]) -> String {
        let name = service_name(service);
        let mut text = format!(
            "apiVersion: discovery.k8s.io/v1\nkind: EndpointSlice\nmetadata:\n  name: {name}\n  namespace: {NAMESPACE}\n  \
             labels:\n    kubernetes.io/service-name: {name}\n  annotations:\n    tulle.dev/identity: {NAMESPACE}/{name}\n\
             addressType: IPv6\nports:\n  - name: main\n    port: {FIRST_PORT}\nendpoints:\n"
        );
        for (endpoint, generation) in generations.iter().enumerate() {
            let address = address(service, endpoint, *generation);
            let _ = writeln!(text, "  - addresses: [\"{address}\"]\n    conditions: {{ready: true}}");
        }
        text
    }

    /// What a proxy's workload says of itself; `served` with the generation of each.
    pub fn registration(&self, proxy: usize, served: &[(usize, u32)]) -> v1::Registration {
        let services = served.iter().map(|(service, generation)| v1::RegisteredService {
            name: service_name(*service),
            ports: vec![v1::RegisteredPort { service_port: SERVICE_PORT, port: FIRST_PORT + generation }],
        });
        v1::Registration {
            address: address(0, proxy, 0).to_string(),
            services: services.collect(),
            locality: None,
            ready: true,
        }
    }

    /// Which endpoint of a service this is, and of which generation; `None`: none of the plan.
    pub fn place(&self, service: usize, endpoint: &v1::Endpoint) -> Option<(usize, u32)> {
        let [_, _, _, _, middle, one, high, low] = endpoint.address.parse::<Ipv6Addr>().ok()?.segments();
        match self.source {
            Source::Files => {
                (usize::from(middle) == service).then_some(())?;
                Some((usize::from(one), (u32::from(high) << 16) | u32::from(low)))
            }
            Source::Reports => {
                let first = service * self.endpoints % self.proxies;
                let place = (usize::from(one) + self.proxies - first) % self.proxies;
                let port = endpoint.ports.first()?.port;
                (place < self.endpoints).then_some((place, port.checked_sub(FIRST_PORT)?))
            }
        }
    }
}

/// The name of a service.
pub(super) fn service_name(service: usize) -> String {
    format!("s{service}")
}

/// The service of a resource's name: `<namespace>/<name>`, for routes after the client's namespace.
pub(super) fn service_of(resource: &str) -> Option<usize> {
    resource.rsplit_once('/')?.1.strip_prefix('s')?.parse().ok()
}

/// The name of a proxy's workload, and of its service account.
pub(super) fn workload_name(proxy: usize) -> String {
    format!("proxy-{proxy}")
}

/// Of the block for documentation.
fn address(middle: usize, one: usize, generation: u32) -> Ipv6Addr {
    let part = |number: usize| u16::try_from(number).expect("at most 65,536 services, endpoints and proxies");
    let [high, low] = [generation >> 16, generation & 0xffff].map(|half| part(half as usize));
    Ipv6Addr::new(0x2001, 0xdb8, 0, 0, part(middle), part(one), high, low)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_service_is_told_leads_back_to_the_change() {
        let plan = Plan { proxies: 7, services: 5, endpoints: 3, uses: 2, source: Source::Reports };
        for proxy in 0..plan.proxies {
            assert_eq!(plan.used_by(proxy).len(), 2);
            for (service, endpoint) in plan.served_by(proxy) {
                let said = plan.registration(proxy, &[(service, 9)]);
                let port = v1::EndpointPort { port: said.services[0].ports[0].port, ..Default::default() };
                let told = v1::Endpoint { address: said.address, ports: vec![port], ..Default::default() };
                assert_eq!(plan.place(service, &told), Some((endpoint, 9)));
            }
        }
        let served: usize = (0..plan.proxies).map(|proxy| plan.served_by(proxy).len()).sum();
        assert_eq!(served, plan.services * plan.endpoints);
    }
}
