//! Thousands of proxies in one process, as a control plane sees them: mutual TLS, delta ADS by the real proxy's
//! session, registration, each over a connection of its own to the real control plane.
//!
//! Counts what arrives at whom and when. Decides nothing about what is good: `simulate` prints it, a test of the control
//! plane asserts it.

mod connection;
mod ledger;
mod plan;
mod proxy;

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant, SystemTime};

use tokio::sync::watch;
use tokio::task::JoinSet;
use tulle_api::v1;
use tulle_certs::SpiffeId;
use tulle_certs::token::TokenFile;
use tulle_control_plane::ca::{StoredTokens, stored_tokens};

pub use self::ledger::{Counted, Ledger};
pub use self::plan::{GENERATIONS, Plan, Random, Source};
use self::plan::{service_name, workload_name};
use self::proxy::Proxy;
use crate::identity::trust_domain;
use crate::world::{NAMESPACE, World};

/// Proxies that run, and the mesh that they are of. All of it ends when it is dropped.
pub struct Fleet {
    plan: Plan,
    world: World,
    ledger: Arc<Ledger>,
    /// What each proxy's workload says of itself.
    registrations: Vec<watch::Sender<v1::Registration>>,
    _proxies: JoinSet<()>,
}

/// How often is looked whether something holds.
const LOOK: Duration = Duration::from_millis(5);

// === impl Fleet ===

impl Fleet {
    /// Writes the mesh and starts every proxy at once. [`Fleet::ready`] waits for them.
    ///
    /// # Panics
    /// When a workload would have to be two endpoints of one service.
    pub fn start(plan: Plan, world: World) -> Self {
        assert!(
            plan.source == Source::Files || plan.endpoints <= plan.proxies,
            "more endpoints than proxies to be them"
        );
        let ledger = Arc::new(Ledger::new(&plan));
        for service in 0..plan.services {
            world.yaml(&format!("service-{}.yaml", service_name(service)), &plan.service_yaml(service));
            if plan.source == Source::Files {
                write_slice(&plan, &world, &ledger, service);
            }
        }
        let StoredTokens { tokens, pin, .. } = stored_tokens(&world.state_folder()).expect("a state folder");
        let mut proxies = JoinSet::new();
        let mut registrations = Vec::new();
        for index in 0..plan.proxies {
            let id = SpiffeId::new(&trust_domain(), NAMESPACE, &workload_name(index)).expect("a SPIFFE ID");
            let served = plan.served_by(index);
            let services: Vec<String> = served.iter().map(|(service, _)| service_name(*service)).collect();
            let day = Duration::from_secs(24 * 3600);
            let token = tokens.mint(&id, &services, day, SystemTime::now()).expect("a token");
            let served: Vec<(usize, u32)> = served.iter().map(|(service, _)| (*service, 0)).collect();
            let registration = watch::Sender::new(plan.registration(index, &served));
            let proxy = Proxy {
                index,
                plan,
                control_plane: world.grpc(),
                token: TokenFile::new(token, pin),
                registration: registration.subscribe(),
                ledger: Arc::clone(&ledger),
            };
            registrations.push(registration);
            proxies.spawn(proxy.run());
        }
        Self { plan, world, ledger, registrations, _proxies: proxies }
    }

    /// Its mesh.
    pub fn world(&mut self) -> &mut World {
        &mut self.world
    }

    /// What is counted.
    pub fn ledger(&self) -> &Ledger {
        &self.ledger
    }

    /// Waits until every proxy has its certificate and its streams, has been answered about everything that it
    /// subscribes to, and knows every endpoint; says how long that took.
    ///
    /// # Errors
    /// What was not there in time.
    pub async fn ready(&self, patience: Duration) -> Result<Duration, String> {
        let counts = &self.ledger.counts;
        let state = || (counts.ready.load(Ordering::Relaxed), counts.whole.load(Ordering::Relaxed));
        wait(patience, || state() == (self.plan.proxies, self.ledger.uses())).await.map_err(|after| {
            format!("after {after:?}, {:?} proxies, services are ready; {:?}", state(), self.ledger.counted())
        })
    }

    /// Waits until not every proxy is ready any more.
    ///
    /// # Errors
    /// When all still are after `patience`.
    pub async fn disturbed(&self, patience: Duration) -> Result<Duration, String> {
        let ready = || self.ledger.counts.ready.load(Ordering::Relaxed);
        wait(patience, || ready() < self.plan.proxies)
            .await
            .map_err(|after| format!("after {after:?} all are ready"))
    }

    /// Changes one endpoint.
    pub fn change(&self, random: &mut Random) {
        let (service, endpoint) = (random.below(self.plan.services), random.below(self.plan.endpoints));
        self.ledger.make(service, endpoint);
        match self.plan.source {
            Source::Files => write_slice(&self.plan, &self.world, &self.ledger, service),
            Source::Reports => {
                let proxy = self.plan.server(service, endpoint);
                let served = self.plan.served_by(proxy).into_iter();
                let served: Vec<(usize, u32)> =
                    served.map(|(service, one)| (service, self.ledger.generations(service)[one])).collect();
                self.registrations[proxy].send_replace(self.plan.registration(proxy, &served));
            }
        }
    }

    /// Changes endpoints at a fixed rate; a change that is late does not delay the next.
    pub async fn change_for(&self, per_second: f64, time: Duration, random: &mut Random) -> u64 {
        let begun = Instant::now();
        let mut made = 0;
        loop {
            let due = Duration::from_secs_f64(made as f64 / per_second);
            if due >= time {
                return made;
            }
            if let Some(left) = due.checked_sub(begun.elapsed()) {
                tokio::time::sleep(left).await;
            }
            self.change(random);
            made += 1;
        }
    }

    /// Waits until every change has arrived at every proxy that uses the service.
    ///
    /// # Errors
    /// How much has not.
    pub async fn converge(&self, patience: Duration) -> Result<Duration, String> {
        wait(patience, || self.ledger.awaited() == 0)
            .await
            .map_err(|after| format!("after {after:?}, {} have not arrived", self.ledger.awaited()))
    }
}

fn write_slice(plan: &Plan, world: &World, ledger: &Ledger, service: usize) {
    let text = plan.slice_yaml(service, &ledger.generations(service));
    world.yaml(&format!("slice-{}.yaml", service_name(service)), &text);
}

async fn wait(patience: Duration, holds: impl Fn() -> bool) -> Result<Duration, Duration> {
    let begun = Instant::now();
    while !holds() {
        if begun.elapsed() > patience {
            return Err(begun.elapsed());
        }
        tokio::time::sleep(LOOK).await;
    }
    Ok(begun.elapsed())
}
