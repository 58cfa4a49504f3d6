//! Lets time pass for the balancers of the services in use: ejections end, windows close, shares grow, zones take more or
//! less. Does nothing, and wakes for nothing, while no policy needs it. Started by `app`, on the control thread.

use std::sync::Arc;
use std::time::Duration;

use crate::balance::State;
use crate::endpoint::Port;
use crate::state::Store;
use crate::telemetry::metrics::Balancer;

/// How often.
const EVERY: Duration = Duration::from_millis(100);

/// Runs for as long as the proxy does.
pub async fn keep_time(store: Arc<Store>) {
    let mut changes = store.changes();
    loop {
        changes.borrow_and_update();
        if settle(&store) {
            tokio::time::sleep(EVERY).await;
        } else if changes.changed().await.is_err() {
            return;
        }
    }
}

/// Whether there was anything to do.
fn settle(store: &Store) -> bool {
    let mut timed = false;
    for service in store.load().services.values() {
        let Some(endpoints) = service.endpoints() else { continue };
        for port in endpoints.ports().iter().filter(|port| port.is_timed()) {
            port.settle(store.nanos());
            timed = true;
        }
    }
    timed
}

/// What the balancers of policies have counted, and the states of their endpoints.
pub fn counted(store: &Store) -> Vec<Balancer> {
    let snapshot = store.load();
    let mut all = Vec::new();
    for service in snapshot.services.values() {
        let Some(endpoints) = service.endpoints() else { continue };
        let planned = endpoints.ports().iter().filter(|port| port.plan.is_some());
        all.extend(planned.map(|port| of(&format!("{}:{}", service.name, port.number), port)));
    }
    all
}

fn of(service: &str, port: &Port) -> Balancer {
    let counted = port.group.counted();
    let in_state = |state: &State| port.members.iter().filter(|member| member.state() == *state).count();
    Balancer {
        service: service.into(),
        endpoints: State::ALL.iter().map(|state| (state.as_str(), in_state(state) as u64)).collect(),
        ejections: counted.ejections().collect(),
        withheld: counted.withheld,
        panics: counted.panics,
        zones: counted.zones,
    }
}
